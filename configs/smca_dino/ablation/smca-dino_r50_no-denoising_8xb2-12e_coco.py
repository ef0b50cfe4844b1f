_base_ = '../smca-dino_r50_8xb2-12e_coco.py'

model = dict(dn_cfg=None)
