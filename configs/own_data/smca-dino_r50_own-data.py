# SMCA-DINO on your own data: copy this file and edit the five lines below. What follows is computed
# from them. docs/custom_data.md goes through it.
_base_ = 'mmsmca::smca_dino/smca-dino_r50_8xb2-12e_coco.py'

from mmengine.fileio import exists, get, join_path

data_root = 'data/mine/'
train = dict(ann_file='annotations/train.json', data_prefix=dict(img='images/'))
val = dict(ann_file='annotations/val.json', data_prefix=dict(img='images/'))
classes = ('bolt', 'nut')  # in the order of the annotation files
load_from = 'start.pth'  # None: only the backbone is pretrained, on ImageNet

# One GPU. Images are resized to fit into the longer and the shorter side, as large as for DINO.
batch_size, image_size, learning_rate = 4, (1333, 800), 1e-4

# A missing file is for the check before training to report.
ann_file = join_path(data_root, train['ann_file'])
num_images = get(ann_file).count(b'"file_name"') if exists(ann_file) else 1
# 12 evaluations. Four times the images take twice the iterations: 1,008 for 50, 2,016 for 200.
eval_interval = 12 * round(num_images**0.5)
max_iters = 12 * eval_interval

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='RandomResize', scale=image_size, ratio_range=(0.6, 1.0), keep_ratio=True),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=image_size, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
# MMDetection draws with random colours.
data = dict(data_root=data_root, metainfo=dict(classes=classes, palette=None))
train_dataloader = dict(
    batch_size=batch_size,
    sampler=dict(type='InfiniteSampler'),
    dataset=dict(**data, **train, pipeline=train_pipeline),
)
val_dataloader = dict(dataset=dict(**data, **val, pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=join_path(data_root, val['ann_file']))
test_evaluator = val_evaluator

model = dict(bbox_head=dict(num_classes=len(classes)))
if load_from:  # It has the backbone's weights, too.
    model['backbone'] = dict(init_cfg=None)

optim_wrapper = dict(optimizer=dict(lr=learning_rate))
auto_scale_lr = dict(base_batch_size=batch_size)
train_cfg = dict(
    _delete_=True, type='IterBasedTrainLoop', max_iters=max_iters, val_interval=eval_interval
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=max_iters // 20),
    dict(
        type='MultiStepLR',
        begin=0,
        end=max_iters,
        by_epoch=False,
        milestones=[max_iters * 5 // 6],
        gamma=0.1,
    ),
]
default_hooks = dict(
    checkpoint=dict(
        by_epoch=False, interval=eval_interval, max_keep_ckpts=1, save_best='coco/bbox_mAP'
    )
)
log_processor = dict(by_epoch=False)
