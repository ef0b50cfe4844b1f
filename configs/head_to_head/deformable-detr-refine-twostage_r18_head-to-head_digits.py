_base_ = ['./deformable-detr-refine-twostage_r18_head-to-head_shapes.py', '../_base_/digits.py']

globals().update(_base_.digits)
