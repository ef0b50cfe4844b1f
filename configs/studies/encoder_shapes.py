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
    dict(name=name, config=_config, cfg_options=options)
    for name, options in (
        ('2intra-multi-2intra', _paper),
        ('3intra', {_kinds: ['intra'] * 3, f'{_encoder}.num_layers': 3}),
        ('3multi', {_kinds: ['multi'] * 3, f'{_encoder}.num_layers': 3}),
        ('5intra', {_kinds: ['intra'] * 5, f'{_encoder}.num_layers': 5}),
        (
            'no-scale-selection',
            {**_paper, 'model.decoder.layer_cfg.cross_attn_cfg.scale_selection': 'uniform'},
        ),
        ('unshared-attention', {**_paper, f'{_encoder}.share_attention': False}),
        ('unshared-ffn', {**_paper, f'{_encoder}.share_ffn': False}),
        # Three layers, as in the head to head.
        ('intra-multi-intra', {}),
    )
] + [
    dict(
        name='conv',
        config='../small/smca-multi-scale-conv_r18w16_1xb4-3ki_shapes192.py',
        cfg_options={f'{_encoder}.num_layers': 5},
    ),
]
