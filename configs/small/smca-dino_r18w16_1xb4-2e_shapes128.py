# The quick start: SMCA-DINO on images of 128 px, which it learns within minutes on a CPU.
# `tools/make_shapes.py data/shapes128 --train 2000` makes the data. An interrupted run resumes from
# the end of an epoch.
_base_ = './smca-dino_r18w16_1xb4-3ki_shapes192.py'

data_root = 'data/shapes128/'
train_pipeline = _base_.train_pipeline
test_pipeline = _base_.test_pipeline
train_pipeline[2].scale = test_pipeline[1].scale = (128, 128)
train_dataloader = dict(
    persistent_workers=False, dataset=dict(data_root=data_root, pipeline=train_pipeline)
)
val_dataloader = dict(batch_size=8, dataset=dict(data_root=data_root, pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_{{$EVAL_SPLIT:val}}.json')
test_evaluator = val_evaluator

max_epochs = 2
train_cfg = dict(_delete_=True, type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=1)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=200),
    # A tenth of the rate from iteration 850 of 1,000 to the end. MultiStepLR needs whole epochs.
    dict(type='ConstantLR', factor=0.1, begin=1.7, end=1000, convert_to_iter_based=True),
]
default_hooks = dict(checkpoint=dict(by_epoch=True, interval=1, save_best='coco/bbox_mAP'))
log_processor = dict(by_epoch=True)
# A run that was interrupted and resumed (tools/train.py --resume) ends with the same weights as an
# uninterrupted one, bit for bit on a CPU.
custom_hooks = [dict(type='EpochSeedHook')]
