# Encoders and scale selection of multi-scale SMCA.
baseline = '2intra-multi-2intra'
seeds = [0]
experiments = [
    dict(
        name='2intra-multi-2intra',
        config='../smca/smca-multi-scale_r50_8xb1-50e_coco.py',
        published='smca/smca-multi-scale_r50_8xb1-50e_coco.py',
    ),
    dict(
        name='3intra',
        config='../smca/ablation/smca-multi-scale_r50_3intra_8xb1-50e_coco.py',
        published='smca/smca-multi-scale_r50_3intra_8xb1-50e_coco.py',
    ),
    dict(
        name='3multi',
        config='../smca/ablation/smca-multi-scale_r50_3multi_8xb1-50e_coco.py',
        published='smca/smca-multi-scale_r50_3multi_8xb1-50e_coco.py',
    ),
    dict(
        name='5intra',
        config='../smca/ablation/smca-multi-scale_r50_5intra_8xb1-50e_coco.py',
        published='smca/smca-multi-scale_r50_5intra_8xb1-50e_coco.py',
    ),
    dict(
        name='no-scale-selection',
        config='../smca/ablation/smca-multi-scale_r50_no-scale-selection_8xb1-50e_coco.py',
        published='smca/smca-multi-scale_r50_no-scale-selection_8xb1-50e_coco.py',
    ),
    dict(
        name='unshared-attention',
        config='../smca/ablation/smca-multi-scale_r50_unshared-attention_8xb1-50e_coco.py',
        published='smca/smca-multi-scale_r50_unshared-attention_8xb1-50e_coco.py',
    ),
    dict(
        name='unshared-ffn',
        config='../smca/ablation/smca-multi-scale_r50_unshared-ffn_8xb1-50e_coco.py',
        published='smca/smca-multi-scale_r50_unshared-ffn_8xb1-50e_coco.py',
    ),
    dict(
        name='conv',
        config='../smca/smca-multi-scale-conv_r50_8xb1-50e_coco.py',
        published='smca/smca-multi-scale-conv_r50_8xb1-50e_coco.py',
    ),
]
