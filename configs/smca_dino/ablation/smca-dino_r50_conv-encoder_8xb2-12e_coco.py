_base_ = '../smca-dino_r50_8xb2-12e_coco.py'

# The authors' convolutional encoder, which outputs the finest level at stride 16.
model = dict(encoder=dict(type='SMCAConvEncoder', num_layers=5))
