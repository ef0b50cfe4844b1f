_base_ = '../smca-multi-scale_r50_8xb1-50e_coco.py'

model = dict(decoder=dict(layer_cfg=dict(cross_attn_cfg=dict(scale_selection='uniform'))))
