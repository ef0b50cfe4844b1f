# The paper finds SMCA insensitive to the batch size. Same learning rate and epochs; 8 GPUs.
baseline = 'batch-16'
seeds = [0]
experiments = [
    dict(
        name='batch-8',
        config='../smca/smca_r50_8xb2-50e_coco.py',
        cfg_options={
            'train_dataloader.batch_size': 1,
        },
    ),
    dict(
        name='batch-16',
        config='../smca/smca_r50_8xb2-50e_coco.py',
        cfg_options={
            'train_dataloader.batch_size': 2,
        },
    ),
    dict(
        name='batch-32',
        config='../smca/smca_r50_8xb2-50e_coco.py',
        cfg_options={
            'train_dataloader.batch_size': 4,
        },
    ),
]
