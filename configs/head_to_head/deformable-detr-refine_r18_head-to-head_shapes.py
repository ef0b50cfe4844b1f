_base_ = './deformable-detr_r18_head-to-head_shapes.py'

model = dict(with_box_refine=True)
