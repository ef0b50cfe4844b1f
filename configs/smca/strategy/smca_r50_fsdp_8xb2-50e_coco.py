_base_ = '../smca_r50_8xb2-50e_coco.py'

# Weights, gradients and the optimizer's state are spread over the processes (FSDP).
runner_type = 'FlexibleRunner'
strategy = dict(
    type='FSDPStrategy',
    model_wrapper=dict(
        # By size: the last stages of the backbone, the encoder, the decoder, and all the rest.
        # Decoder layers on their own would not do, as the centres are predicted with the first's.
        auto_wrap_policy=dict(
            type='torch.distributed.fsdp.wrap.size_based_auto_wrap_policy',
            min_num_params=5_000_000,
        ),
    ),
    # Checkpoints as without FSDP. On a CPU, 'full' would offload them to memory it has freed.
    state_dict_cfg=dict(
        state_dict_type='FULL_STATE_DICT',
        state_dict_config=dict(type='FullStateDictConfig', rank0_only=True),
        optim_state_dict_config=dict(
            type='FullOptimStateDictConfig', rank0_only=True, offload_to_cpu=False
        ),
    ),
)
# Clips by the norm over all shards.
optim_wrapper = dict(type='FSDPOptimWrapper')
