_base_ = [
    'mmdet::dab_detr/dab-detr_r50_8xb2-50e_coco.py',
    './_base_/recipe.py',
]

globals().update(_base_.recipe)
model = _base_.single_scale
