_base_ = '../smca-dino_r50_8xb2-12e_coco.py'

model = dict(as_two_stage=False)
