_base_ = '../smca-dino_r50_8xb2-12e_coco.py'

# Strides 16 to 64 in the first three layers, where boxes are still rough; 8 to 64 in the others.
model = dict(decoder=dict(start_levels=[1, 1, 1, 0, 0, 0]))
