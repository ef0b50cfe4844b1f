_base_ = './smca-dino_convnext-t_8xb2-12e_coco.py'

model = dict(backbone=dict(model='facebook/dinov3-convnext-tiny-pretrain-lvd1689m'))
