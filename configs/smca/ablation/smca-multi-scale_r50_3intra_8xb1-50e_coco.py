_base_ = '../smca-multi-scale_r50_8xb1-50e_coco.py'

model = dict(encoder=dict(num_layers=3, layer_kinds=['intra', 'intra', 'intra']))
