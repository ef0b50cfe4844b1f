_base_ = './deformable-detr_r18_shapes.py'

model = dict(with_box_refine=True)
