_base_ = [
    'mmdet::conditional_detr/conditional-detr_r50_8xb2-50e_coco.py',
    './_base_/recipe.py',
]

globals().update(_base_.recipe)
model = _base_.single_scale
# MMDetection's Conditional DETR works only with 256 channels, twice the width of the others.
model.neck.out_channels = 256
model.encoder.layer_cfg.self_attn_cfg.update(embed_dims=256, dropout=0.0)
model.encoder.layer_cfg.ffn_cfg.embed_dims = 256
model.decoder.layer_cfg.self_attn_cfg.update(embed_dims=256, attn_drop=0.0)
model.decoder.layer_cfg.cross_attn_cfg.update(embed_dims=256, attn_drop=0.0)
model.decoder.layer_cfg.ffn_cfg.embed_dims = 256
model.positional_encoding.num_feats = 128
model.bbox_head.embed_dims = 256
