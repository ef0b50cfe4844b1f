_base_ = ['../smca-dino_r50_8xb2-12e_coco.py', '../../_base_/dino_encoder.py']

model = dict(encoder=_base_.dino_encoder)
