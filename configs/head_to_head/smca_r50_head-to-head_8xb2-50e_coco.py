_base_ = [
    '../smca/smca_r50_8xb2-50e_coco.py',
    './_base_/recipe_coco.py',
]

globals().update(_base_.recipe)
