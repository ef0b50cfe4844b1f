_base_ = [
    'mmdet::dino/dino-4scale_r50_improved_8xb2-12e_coco.py',
    './_base_/recipe_coco.py',
]

globals().update(_base_.recipe)
