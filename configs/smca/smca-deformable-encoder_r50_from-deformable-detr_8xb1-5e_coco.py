# MMDetection's Deformable DETR, with one stage and without refinement, converted and fine-tuned:
#
#   python tools/convert_dino.py mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py \
#     detr.pth smca-deformable-encoder_r50_from-deformable-detr.pth --images data/coco/train2017 \
#     --to configs/smca/smca-deformable-encoder_r50_from-deformable-detr_8xb1-5e_coco.py
#
# detr.pth: MMDetection's weights, box AP 44.3,
# https://download.openmmlab.com/mmdetection/v3.0/deformable_detr/deformable-detr_r50_16xb2-50e_coco/deformable-detr_r50_16xb2-50e_coco_20221029_210934-6bc7d21b.pth
_base_ = ['./smca-deformable-encoder_r50_8xb1-50e_coco.py', '../_base_/from_dino.py']

globals().update(_base_.from_dino)
# The encoder's inputs are those of Deformable DETR.
model = dict(
    neck=dict(norm_cfg=dict(_delete_=True, type='GN', num_groups=32)),
    positional_encoding=dict(offset=-0.5),
)
load_from = 'smca-deformable-encoder_r50_from-deformable-detr.pth'
