_base_ = '../smca_r50_8xb2-50e_coco.py'

# Shard weights, gradients and optimizer state across processes (FSDP).
runner_type = 'FlexibleRunner'
strategy = dict(
    type='FSDPStrategy',
    model_wrapper=dict(
        # Wrap by size: the last stages of the backbone, the encoder, the decoder, and the rest.
        # Wrapping decoder layers one by one fails: centres are predicted with the first's prior.
        auto_wrap_policy=dict(
            type='torch.distributed.fsdp.wrap.size_based_auto_wrap_policy',
            min_num_params=5_000_000,
        ),
    ),
    # Checkpoints as without FSDP. On a CPU, the preset 'full' would offload them to freed memory.
    state_dict_cfg=dict(
        state_dict_type='FULL_STATE_DICT',
        state_dict_config=dict(type='FullStateDictConfig', rank0_only=True),
        optim_state_dict_config=dict(
            type='FullOptimStateDictConfig', rank0_only=True, offload_to_cpu=False
        ),
    ),
)
# Clip gradients by their norm over all shards.
optim_wrapper = dict(type='FSDPOptimWrapper')
