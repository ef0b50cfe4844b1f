_base_ = './smca_r50_8xb2-50e_coco.py'

# Dilated C5: the last stage dilates instead of striding, so the stride of the level is 16.
model = dict(strides=[16], backbone=dict(strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2)))

train_dataloader = dict(batch_size=1)
auto_scale_lr = dict(base_batch_size=8)
