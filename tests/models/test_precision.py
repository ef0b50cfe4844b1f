"""Mixed precision: what stays in float32, confident scores, and 300 steps with ``--amp``."""

import json
import math

import pytest
import torch
from mmdet.registry import OPTIM_WRAPPERS
from mmengine.logging import MessageHub
from scripts import run_python
from utils import ROOT, build_detector, load_config, sample

from mmsmca.datasets.shapes import Shapes
from mmsmca.engine import cpu
from mmsmca.errors import DivergedError
from mmsmca.models.layers.memory import Memory

SMALL = dict(num_queries=12, encoder=dict(num_layers=1), decoder=dict(num_layers=2))
DINO = 'small/smca-dino_r18w16_1xb4-3ki_shapes192.py'
CONFIGS = {
    'single scale': ('small/smca_r18w16_1xb8-11e_shapes128.py', {}),
    'multi scale': (
        'small/smca-multi-scale_r18w16_1xb4-3ki_shapes192.py',
        dict(encoder=dict(layer_kinds=['multi'])),
    ),
    # Its queries would be others, were they chosen by scores in half precision.
    'smca-dino, one stage': (DINO, dict(as_two_stage=False)),
}


def build(name):
    config, options = {**CONFIGS, 'smca-dino': (DINO, {})}[name]
    encoder = {**SMALL['encoder'], **options.get('encoder', {})}
    options = {**SMALL, **options, 'encoder': encoder}
    torch.manual_seed(0)
    model = build_detector(config, options).train()
    model.init_weights()
    return model


def losses(model, dtype=None):
    """Losses of two images, one without objects, under autocast."""
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    samples = [sample((64, 96), (64, 96)), sample((48, 96), (64, 96), num_boxes=0)]
    samples[0].gt_instances.labels %= 6
    torch.manual_seed(0)  # of the noise that DINO's denoising removes
    with torch.autocast('cpu', dtype=dtype, enabled=dtype is not None):
        return model(images, samples, mode='loss')


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('name', CONFIGS)
def test_matching_and_losses_are_in_float32(name, dtype):
    model = build(name)
    inputs = []
    model.bbox_head.register_forward_hook(lambda module, args, out: inputs.append((args, out)))
    expected, mixed = losses(model), losses(model, dtype)
    # Mixed precision is in effect before the head.
    assert not torch.equal(inputs[0][0][0], inputs[1][0][0])
    assert all(out.dtype == torch.float32 for out in inputs[1][1])
    for key, loss in mixed.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, expected[key], rtol=0.02, atol=0)
    sum(mixed.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_confident_scores_survive_half_precision():
    """A score that half precision rounds to 1 has no finite cost of being background there."""
    model = build('single scale')
    with torch.no_grad():
        model.bbox_head.fc_cls.bias.fill_(10.0)
    mixed = losses(model, torch.float16)
    assert all(loss.isfinite() for loss in mixed.values())


@pytest.mark.parametrize(('dtype', 'limit'), [(torch.bfloat16, 0.03), (torch.float16, 0.004)])
def test_smca_dino_in_half_precision_is_near_float32(dtype, limit):
    """Its decoder, given the same cells and queries, boxes of all sizes."""
    model = build('smca-dino').eval()
    with torch.no_grad():
        # Away from the start, where attention does not look at the content.
        for parameter in model.decoder.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    generator = torch.Generator().manual_seed(0)
    shapes = [(16, 24), (8, 12), (4, 6)]
    cells = sum(height * width for height, width in shapes)
    memory, memory_pos = torch.randn(2, 2, cells, 128, generator=generator)
    given = dict(
        query=torch.randn(2, 12, 128, generator=generator),
        reference_points=torch.rand(2, 12, 4, generator=generator) * 0.9 + 0.05,
        memory=Memory(memory, memory_pos, None, shapes),
        image_sizes=torch.tensor([[192.0, 128.0]] * 2),
    )
    outputs = []
    for enabled in (False, True):
        with torch.no_grad(), torch.autocast('cpu', dtype=dtype, enabled=enabled):
            outputs.append(model.forward_decoder(**given))
    expected, mixed = (output['hidden_states'].float() for output in outputs)
    error = (mixed - expected).norm() / expected.norm()
    assert 0 < error < limit
    boxes, mixed_boxes = (output['references'][-1].float() for output in outputs)
    assert (mixed_boxes - boxes).abs().max() < limit


def test_smca_dino_trains_in_half_precision():
    """Query selection and denoising included; float16 is what accelerators have."""
    model = build('smca-dino')
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    totals = []
    for _ in range(4):  # slow on a CPU
        total = sum(losses(model, torch.float16).values())
        optimizer.zero_grad()
        total.backward()
        assert all(p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
        totals.append(float(total))
    assert totals[-1] < totals[0]


def mixed_precision_wrapper(**options):
    """What ``--amp`` gives where there is no accelerator."""
    cpu.support_mixed_precision()
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    cfg = dict(type='AmpOptimWrapper', loss_scale='dynamic', optimizer=optimizer)
    return OPTIM_WRAPPERS.build(dict(cfg, **options))


def test_mixed_precision_on_a_cpu_is_bfloat16():
    wrapper, linear = mixed_precision_wrapper(), torch.nn.Linear(2, 2)
    with wrapper.optim_context(linear):
        assert linear(torch.ones(2)).dtype == torch.bfloat16
    assert linear(torch.ones(2)).dtype == torch.float32
    with pytest.raises(ValueError, match="optim_wrapper.dtype='float16' needs an accelerator"):
        mixed_precision_wrapper(dtype='float16')


@pytest.mark.slow
def test_300_steps_with_amp_stay_finite(tmp_path):
    data = tmp_path / 'data'
    Shapes(num_train=20, num_val=2, size=64, max_objects=2, seed=0).write(data)
    cfg = load_config('small/smca_r18w16_1xb8-11e_shapes128.py')
    options = {
        'model.backbone.base_channels': 8,
        'model.neck.in_channels': [64],
        'model.encoder.num_layers': 1,
        'model.decoder.num_layers': 2,
        'train_cfg.max_epochs': 30,
        'train_cfg.val_interval': 30,
        'train_dataloader.batch_size': 2,
        'train_dataloader.dataset.pipeline.2.scale': (64, 64),
        'default_hooks.logger.interval': 1,
    }
    for phase in ('train', 'val', 'test'):
        options[f'{phase}_dataloader.dataset.data_root'] = f'{data}/'
        options[f'{phase}_dataloader.num_workers'] = 0
        options[f'{phase}_dataloader.persistent_workers'] = False
    for phase in ('val', 'test'):
        options[f'{phase}_evaluator.ann_file'] = f'{data}/annotations/instances_val.json'
    cfg.merge_from_dict(options)
    cfg.dump(tmp_path / 'config.py')
    command = (ROOT / 'tools/train.py', 'config.py', '--amp', '--work-dir', 'run')
    run_python(*command, cwd=tmp_path, timeout=3000)
    (scalars,) = (tmp_path / 'run').glob('*/vis_data/scalars.json')
    steps = [json.loads(line) for line in scalars.read_text().splitlines()]
    steps = [step for step in steps if 'loss' in step]
    assert len(steps) == 300
    assert all(math.isfinite(value) for step in steps for value in step.values())
    assert sum(s['loss'] for s in steps[-50:]) < 0.8 * sum(s['loss'] for s in steps[:50])


@pytest.mark.parametrize('name', ['single scale', 'smca-dino'])
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_a_detector_cast_to_half_precision_detects(name, dtype):
    """Boxes and scores come in float32, and are near what the weights of float32 give."""
    model = build(name).eval()
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    samples = [sample((64, 96), (64, 96)), sample((48, 96), (64, 96))]
    with torch.no_grad():
        expected = model(images, samples, mode='tensor')
        model.to(dtype)
        logits, boxes = model(images.to(dtype), samples, mode='tensor')
    assert logits.dtype == boxes.dtype == torch.float32
    assert (logits - expected[0]).norm() < 0.05 * expected[0].norm()
    if name == 'single scale':  # the other selects other queries where scores are close
        assert (boxes - expected[1]).abs().max() < 0.02


def test_queries_are_selected_in_float32():
    """Scores of half precision would be equal, and their loss infinite."""
    model = build('smca-dino')
    selection = model.bbox_head.cls_branches[model.decoder.num_layers]
    with torch.no_grad():
        selection.bias.fill_(70000.0)  # beyond float16
    seen = []
    selection.register_forward_hook(lambda module, args, out: seen.append(out))
    mixed = losses(model, torch.float16)
    assert all(out.dtype == torch.float32 for out in seen)
    assert all(loss.isfinite() for loss in mixed.values())


@pytest.mark.parametrize('name', ['single scale', 'smca-dino'])
def test_a_training_that_diverged_says_so(name):
    model = build(name)
    with torch.no_grad():
        next(model.decoder.parameters()).fill_(math.nan)
    hub = MessageHub.get_current_instance()
    hub.update_info('iter', 41)
    hub.update_scalar('train/lr', 0.5)
    with pytest.raises(DivergedError, match=r'NaN in step 42, at a learning rate of 0\.5: lower'):
        losses(model)
