_base_ = './deformable-detr-refine_r18_shapes.py'

model = dict(as_two_stage=True)
