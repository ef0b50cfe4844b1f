# Encoders and scale selection of multi-scale SMCA.
baseline = '2intra-multi-2intra'
seeds = [0]
experiments = [
    dict(name=name, config=f'../smca/{config}.py')
    for name, config in (
        ('2intra-multi-2intra', 'smca-multi-scale_r50_8xb1-50e_coco'),
        *(
            (name, f'ablation/smca-multi-scale_r50_{name}_8xb1-50e_coco')
            for name in (
                '3intra',
                '3multi',
                '5intra',
                'no-scale-selection',
                'unshared-attention',
                'unshared-ffn',
            )
        ),
        ('conv', 'smca-multi-scale-conv_r50_8xb1-50e_coco'),
    )
]
