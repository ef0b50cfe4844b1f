_base_ = [
    '../smca/smca-multi-scale-conv_r50_8xb1-50e_coco.py',
    './_base_/recipe_coco.py',
]

globals().update(_base_.recipe)
