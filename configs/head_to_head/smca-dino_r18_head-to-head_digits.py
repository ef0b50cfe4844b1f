_base_ = ['./smca-dino_r18_head-to-head_shapes.py', '../_base_/digits.py']

globals().update(_base_.digits)
