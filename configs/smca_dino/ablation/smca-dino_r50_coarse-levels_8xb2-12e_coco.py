_base_ = '../smca-dino_r50_8xb2-12e_coco.py'

# The decoder attends to strides 16 to 64 only. Queries are still selected on all levels.
model = dict(decoder=dict(start_levels=[1] * 6))
