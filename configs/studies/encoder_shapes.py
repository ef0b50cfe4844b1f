# Encoders and scale selection of multi-scale SMCA on generated data.
_config = '../small/smca-multi-scale_r18w16_1xb4-3ki_shapes192.py'
_encoder = 'model.encoder'
_kinds = f'{_encoder}.layer_kinds'
_paper = {_kinds: ['intra', 'intra', 'multi', 'intra', 'intra'], f'{_encoder}.num_layers': 5}
baseline = '2intra-multi-2intra'
seeds = [0, 1, 2]
budgets = [dict(iterations=1500)]
chosen = (
    'The recipe was chosen on other images with SMCA and Deformable DETR in view; nothing was '
    'chosen on these.'
)
experiments = [
    dict(
        name=name,
        config=_config,
        published=f'smca/smca-multi-scale_r50_{published}8xb1-50e_coco.py',
        cfg_options=options,
    )
    for name, published, options in (
        ('2intra-multi-2intra', '', _paper),
        ('3intra', '3intra_', {_kinds: ['intra'] * 3, f'{_encoder}.num_layers': 3}),
        ('3multi', '3multi_', {_kinds: ['multi'] * 3, f'{_encoder}.num_layers': 3}),
        ('5intra', '5intra_', {_kinds: ['intra'] * 5, f'{_encoder}.num_layers': 5}),
        (
            'no-scale-selection',
            'no-scale-selection_',
            {**_paper, 'model.decoder.layer_cfg.cross_attn_cfg.scale_selection': 'uniform'},
        ),
        (
            'unshared-attention',
            'unshared-attention_',
            {**_paper, f'{_encoder}.share_attention': False},
        ),
        ('unshared-ffn', 'unshared-ffn_', {**_paper, f'{_encoder}.share_ffn': False}),
    )
] + [
    dict(
        name='conv',
        config='../small/smca-multi-scale-conv_r18w16_1xb4-3ki_shapes192.py',
        published='smca/smca-multi-scale-conv_r50_8xb1-50e_coco.py',
        cfg_options={f'{_encoder}.num_layers': 5},
    ),
    # Three layers, to compare with the prior in the encoder, which is not in the paper.
    dict(name='intra-multi-intra', config=_config),
    dict(
        name='3gaussian',
        config=_config,
        cfg_options={
            _encoder: dict(
                _delete_=True,
                type='SMCAGaussianEncoder',
                num_layers=3,
                num_levels=3,
                layer_cfg=dict(
                    self_attn_cfg=dict(embed_dims=128),
                    ffn_cfg=dict(embed_dims=128, feedforward_channels=512, ffn_drop=0.0),
                ),
            )
        },
    ),
]
