_base_ = './smca-multi-scale_r50_8xb1-50e_coco.py'

# The paper's model with one change: every layer's box moves the centre of the next layer's prior.
model = dict(decoder=dict(refine=True))
