_base_ = '../smca-dino_r50_8xb2-12e_coco.py'

# Plain attention: all channels are for the content, and the initialisation is DETR's.
model = dict(decoder=dict(layer_cfg=dict(spatial_prior_cfg=None)))
