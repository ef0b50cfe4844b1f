# MMDetection's DINO with improved settings, converted and fine-tuned:
#
#   python tools/convert_dino.py mmdet::dino/dino-4scale_r50_improved_8xb2-12e_coco.py dino.pth \
#     smca-dino_r50_from-dino.pth --images data/coco/train2017 \
#     --to configs/smca_dino/smca-dino_r50_from-dino_8xb2-5e_coco.py
#
# dino.pth: MMDetection's weights, box AP 50.1,
# https://download.openmmlab.com/mmdetection/v3.0/dino/dino-4scale_r50_improved_8xb2-12e_coco/dino-4scale_r50_improved_8xb2-12e_coco_20230818_162607-6f47a913.pth
_base_ = ['./smca-dino_r50_8xb2-12e_coco.py', '../_base_/from_dino.py']

globals().update(_base_.from_dino)
load_from = 'smca-dino_r50_from-dino.pth'
