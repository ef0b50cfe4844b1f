# Ablations of SMCA-DINO: its parts, removed or replaced one at a time.
_config = '../small/smca-dino_r18w16_1xb4-3ki_shapes192.py'
_prior = 'model.decoder.layer_cfg.spatial_prior_cfg'
_attention_layer = dict(
    self_attn_cfg=dict(embed_dims=128),
    ffn_cfg=dict(embed_dims=128, feedforward_channels=512, ffn_drop=0.0),
)
_options = {
    'smca-dino': {},
    # No prior: all channels are for the content, and the initialisation is DETR's.
    'plain-attention': {_prior: None},
    'static-prior': {_prior: dict(_delete_=True, type='StaticPrior')},
    'no-gates': {f'{_prior}.gated': False},
    'no-floor': {f'{_prior}.floor': 0.01},
    'coarse-first': {'model.decoder.start_levels': [1, 1, 0]},
    'coarse-levels': {'model.decoder.start_levels': [1, 1, 1]},
    'no-denoising': {'model.dn_cfg': None},
    'one-stage': {'model.as_two_stage': False},
    'focal-loss': {
        'model.bbox_head.loss_cls': dict(
            _delete_=True,
            type='FocalLoss',
            use_sigmoid=True,
            gamma=2.0,
            alpha=0.25,
            loss_weight=1.0,
        )
    },
    'intra-multi-encoder': {
        'model.encoder': dict(
            _delete_=True,
            type='SMCAEncoder',
            num_layers=3,
            layer_kinds=['intra', 'multi', 'intra'],
            layer_cfg=_attention_layer,
        )
    },
    # The finest level of its output has stride 16.
    'conv-encoder': {
        'model.encoder': dict(
            _delete_=True,
            type='SMCAConvEncoder',
            num_layers=3,
            layer_cfg=_attention_layer,
        ),
    },
}
baseline = 'smca-dino'
budgets = [dict(iterations=1500)]
seeds = [0, 1, 2]
experiments = [
    *(dict(name=name, config=_config, cfg_options=options) for name, options in _options.items()),
    dict(
        name='deformable-encoder',
        config='../small/smca-dino_deformable-encoder_r18w16_1xb4-3ki_shapes192.py',
    ),
]
