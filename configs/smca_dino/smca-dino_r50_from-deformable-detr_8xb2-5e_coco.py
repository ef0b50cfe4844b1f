# MMDetection's Deformable DETR, refined and with two stages, converted and fine-tuned:
#
#   python tools/convert_dino.py \
#     mmdet::deformable_detr/deformable-detr-refine-twostage_r50_16xb2-50e_coco.py detr.pth \
#     smca-dino_r50_from-deformable-detr.pth --images data/coco/train2017 \
#     --to configs/smca_dino/smca-dino_r50_from-deformable-detr_8xb2-5e_coco.py
#
# detr.pth: MMDetection's weights, box AP 47.0,
# https://download.openmmlab.com/mmdetection/v3.0/deformable_detr/deformable-detr-refine-twostage_r50_16xb2-50e_coco/deformable-detr-refine-twostage_r50_16xb2-50e_coco_20221021_184714-acc8a5ff.pth
_base_ = './smca-dino_r50_from-dino_8xb2-5e_coco.py'

model = dict(
    num_queries=300,
    decoder=dict(layer_cfg=dict(ffn_cfg=dict(feedforward_channels=1024))),
)
load_from = 'smca-dino_r50_from-deformable-detr.pth'
