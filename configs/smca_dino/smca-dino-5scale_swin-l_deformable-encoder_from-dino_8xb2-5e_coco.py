# MMDetection's DINO with Swin-L, its encoder included, converted and fine-tuned:
#
#   python tools/convert_dino.py mmdet::dino/dino-5scale_swin-l_8xb2-36e_coco.py dino.pth \
#     smca-dino-5scale_swin-l_deformable-encoder_from-dino.pth --images data/coco/train2017 \
#     --to configs/smca_dino/smca-dino-5scale_swin-l_deformable-encoder_from-dino_8xb2-5e_coco.py
#
# dino.pth: MMDetection's weights, box AP 58.4,
# https://github.com/RistoranteRist/mmlab-weights/releases/download/dino-swinl/dino-5scale_swin-l_8xb2-36e_coco-5486e051.pth
_base_ = ['./smca-dino-5scale_swin-l_from-dino_8xb2-5e_coco.py', '../_base_/dino_encoder.py']

model = dict(encoder=_base_.dino_encoder)
load_from = 'smca-dino-5scale_swin-l_deformable-encoder_from-dino.pth'
