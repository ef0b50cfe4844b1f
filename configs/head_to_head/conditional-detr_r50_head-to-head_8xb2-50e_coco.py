_base_ = [
    'mmdet::conditional_detr/conditional-detr_r50_8xb2-50e_coco.py',
    './_base_/recipe_coco.py',
]

globals().update(_base_.recipe)
