"""What this package adds to every recipe: one optimizer call, a faster metric, whole checkpoints.

MMEngine rejects two base files with the same key, and MMDetection's configs have these keys. So
they are under one name here, which configs merge by ``globals().update(_base_.common)``.
"""

common = dict(
    # Checks the config before MMEngine's runner starts; runner_type='Runner' does not.
    runner_type='CheckedRunner',
    # --auto-scale-lr needs the key.
    auto_scale_lr=dict(enable=False),
    custom_imports=dict(imports=['mmsmca'], allow_failed_imports=False),
    # One optimizer call for all weights with the same settings.
    optim_wrapper=dict(constructor='GroupedOptimWrapperConstructor', optimizer=dict(fused=True)),
    # Uses faster-coco-eval if it is installed, with the same results as pycocotools.
    val_evaluator=dict(type='FastestCocoMetric'),
    test_evaluator=dict(type='FastestCocoMetric'),
    # Checkpoints are complete even if a run is killed.
    default_hooks=dict(checkpoint=dict(type='AtomicCheckpointHook')),
)
