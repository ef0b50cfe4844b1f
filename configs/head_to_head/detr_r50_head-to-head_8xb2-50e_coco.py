_base_ = [
    'mmdet::detr/detr_r50_8xb2-150e_coco.py',
    './_base_/recipe_coco.py',
]

globals().update(_base_.recipe)
