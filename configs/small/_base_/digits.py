"""The generated data set "digits" (``tools/make_digits.py data/digits``), for any small detector.

A second data set that no setting was chosen on: recipe and sizes are those of shapes192. There are
no flips, as a mirrored digit is not a digit.
"""

data_root = 'data/digits/'
metainfo = dict(classes=('0', '1', '2', '3', '4', '5', '6', '7', '8', '9'))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=(96, 96), keep_ratio=True),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(
    dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=train_pipeline)
)
val_dataloader = dict(dataset=dict(data_root=data_root, metainfo=metainfo))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_{{$EVAL_SPLIT:val}}.json')
test_evaluator = val_evaluator
model = dict(bbox_head=dict(num_classes=10))
