_base_ = '../smca-dino_r50_8xb2-12e_coco.py'

model = dict(bbox_head=dict(loss_cls=dict(_delete_=True, type='MatchabilityLoss', gamma=1.5)))
