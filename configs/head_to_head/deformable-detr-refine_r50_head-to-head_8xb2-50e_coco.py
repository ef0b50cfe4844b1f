_base_ = [
    'mmdet::deformable_detr/deformable-detr-refine_r50_16xb2-50e_coco.py',
    './_base_/recipe_coco.py',
]

globals().update(_base_.recipe)
