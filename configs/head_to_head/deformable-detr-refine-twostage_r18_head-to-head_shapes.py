_base_ = './deformable-detr-refine_r18_head-to-head_shapes.py'

model = dict(as_two_stage=True)
