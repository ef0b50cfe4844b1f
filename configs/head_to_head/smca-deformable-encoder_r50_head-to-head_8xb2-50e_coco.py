_base_ = [
    '../smca/smca-deformable-encoder_r50_8xb1-50e_coco.py',
    './_base_/recipe_coco.py',
]

globals().update(_base_.recipe)
