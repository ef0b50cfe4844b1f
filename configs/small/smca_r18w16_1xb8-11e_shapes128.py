_base_ = './smca_r18w16_1xb4-3ki_shapes192.py'

# Trained in epochs, on the data of the quick start
# ("tools/make_shapes.py data/shapes128 --train 2000").
data_root = 'data/shapes128/'
train_pipeline = _base_.train_pipeline
test_pipeline = _base_.test_pipeline
train_pipeline[2].scale = test_pipeline[1].scale = (128, 128)
train_dataloader = dict(
    batch_size=8,
    persistent_workers=False,
    dataset=dict(data_root=data_root, pipeline=train_pipeline),
)
val_dataloader = dict(batch_size=8, dataset=dict(data_root=data_root, pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_{{$EVAL_SPLIT:val}}.json')
test_evaluator = val_evaluator

max_epochs = 11
train_cfg = dict(_delete_=True, type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=4)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=200),
    dict(type='MultiStepLR', begin=0, end=max_epochs, by_epoch=True, milestones=[9], gamma=0.1),
]
auto_scale_lr = dict(base_batch_size=8)
default_hooks = dict(checkpoint=dict(by_epoch=True, interval=1, save_best='coco/bbox_mAP'))
log_processor = dict(by_epoch=True)
# A run that was interrupted and resumed (tools/train.py --resume) ends with the same weights as an
# uninterrupted one, bit for bit on a CPU.
custom_hooks = [dict(type='EpochSeedHook')]
