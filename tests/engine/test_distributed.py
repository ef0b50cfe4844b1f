"""Two processes on a CPU train, evaluate and clip as one does with the same global batch."""

import json
import multiprocessing
import pickle
from functools import cache

import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.model import MMDistributedDataParallel
from mmengine.runner import Runner
from runs import small_config
from scripts import run_python
from torch import distributed
from utils import build_detector, load_config, sample

from mmsmca.datasets.shapes import Shapes
from mmsmca.engine.cpu import LauncherError, support_processes

# A narrow ResNet-18 in place of ResNet-50; its batch norm is frozen, as in every config for COCO.
BACKBONE = dict(depth=18, base_channels=8)
C5 = dict(backbone=BACKBONE, neck=dict(in_channels=[64]))
C4_C5 = dict(backbone=BACKBONE, neck=dict(in_channels=[32, 64]))
C3_C4_C5 = dict(backbone=BACKBONE, neck=dict(in_channels=[16, 32, 64]))
MODELS = {
    'single scale': ('smca/smca_r50_8xb2-50e_coco.py', C5, dict(num_layers=1)),
    'multi scale': (
        'smca/smca-multi-scale_r50_8xb1-50e_coco.py',
        C4_C5,
        dict(num_layers=2, layer_kinds=['intra', 'multi']),
    ),
    'conv': ('smca/smca-multi-scale-conv_r50_8xb1-50e_coco.py', C3_C4_C5, dict(num_layers=1)),
    'deformable': (
        'smca/smca-deformable-encoder_r50_8xb1-50e_coco.py',
        C3_C4_C5,
        dict(num_layers=1),
    ),
    # Without its denoising, whose noise is random.
    'smca-dino': (
        'smca_dino/smca-dino_r50_8xb2-12e_coco.py',
        dict(C3_C4_C5, dn_cfg=None),
        dict(num_layers=1),
    ),
}
# Numbers of boxes of the images of each process.
BATCHES = {
    'even': ([3, 1], [2, 4]),
    'uneven': ([3, 1, 2], [4]),
    'a process without boxes': ([3, 2], [0, 0]),
}
NO_OBJECT = [0], [0]
CASES = [(model, batch) for model in MODELS for batch in BATCHES]


@cache
def build(name):
    with_denoising = MODELS['smca-dino'][0], C3_C4_C5, dict(num_layers=1)
    config, options, encoder = {**MODELS, 'denoising': with_denoising}[name]
    options = dict(options, num_queries=12, encoder=encoder, decoder=dict(num_layers=2))
    for part in ('encoder', 'decoder'):
        options[part]['layer_cfg'] = dict(
            self_attn_cfg=dict(dropout=0.0), ffn_cfg=dict(ffn_drop=0.0)
        )
    options['decoder']['layer_cfg']['cross_attn_cfg'] = dict(dropout=0.0)
    torch.manual_seed(0)
    return build_detector(config, options).double().train()


def batch_of(boxes_of_processes, dtype=torch.float64):
    """Images of different sizes and their annotations."""
    generator = torch.Generator().manual_seed(1)
    numbers = [number for numbers in boxes_of_processes for number in numbers]
    images = torch.randn(len(numbers), 3, 96, 128, generator=generator, dtype=dtype)
    samples = [
        sample((96 - 8 * i, 128 - 16 * i), (96, 128), number, dtype=dtype)
        for i, number in enumerate(numbers)
    ]
    return images, samples


def loss_and_gradients(model, images, samples):
    module = getattr(model, 'module', model)
    module.zero_grad()
    loss, _ = module.parse_losses(model(images, samples, mode='loss'))
    loss.backward()
    gradients = {n: p.grad for n, p in module.named_parameters() if p.requires_grad}
    return loss.detach(), gradients


def join(rank, world_size, folder):
    """Make a forked process one of several."""
    torch.set_num_threads(1)  # other threads do not survive the fork
    store = f'file://{folder}/store'
    distributed.init_process_group('gloo', init_method=store, rank=rank, world_size=world_size)


def in_processes(world_size, target, folder, *args):
    """Run a function of rank, number of processes and folder in processes that fork from this."""
    context = multiprocessing.get_context('fork')
    workers = [
        context.Process(target=target, args=(rank, world_size, folder, *args))
        for rank in range(world_size)
    ]
    for process in workers:
        process.start()
    for process in workers:
        process.join(600)
        assert process.exitcode == 0


def gradients_worker(rank, world_size, folder):
    """One of two processes; writes down losses and gradients."""
    join(rank, world_size, folder)
    results = {}
    for name in MODELS:
        model = MMDistributedDataParallel(build(name), broadcast_buffers=False)
        for batch, boxes in BATCHES.items():
            images, samples = batch_of(boxes)
            first = sum(len(numbers) for numbers in boxes[:rank])
            own = slice(first, first + len(boxes[rank]))
            loss, gradients = loss_and_gradients(model, images[own], samples[own])
            distributed.all_reduce(loss)
            gradients = {n: g.clone() for n, g in gradients.items()}
            results[name, batch] = (loss / distributed.get_world_size(), gradients)
    images, samples = batch_of(NO_OBJECT, torch.float32)
    model = MMDistributedDataParallel(build('denoising').float(), broadcast_buffers=False)
    # The second step refuses to begin if a parameter was left out of the first.
    for _ in range(2):
        own = slice(rank, rank + 1)
        results['denoising'] = loss_and_gradients(model, images[own], samples[own])
    if rank == 0:
        torch.save(results, folder / 'gradients.pth')
    distributed.destroy_process_group()


@pytest.fixture(scope='module')
def of_two(tmp_path_factory):
    folder = tmp_path_factory.mktemp('two')
    in_processes(2, gradients_worker, folder)
    return torch.load(folder / 'gradients.pth')


@pytest.mark.parametrize('case', CASES, ids=' - '.join)
def test_loss_and_gradients_are_those_of_one_process(of_two, case):
    name, batch = case
    images, samples = batch_of(BATCHES[batch])
    loss, gradients = loss_and_gradients(build(name), images, samples)
    loss_of_two, gradients_of_two = of_two[case]
    torch.testing.assert_close(loss_of_two, loss, rtol=1e-12, atol=0)
    assert gradients_of_two.keys() == gradients.keys()
    largest = max(gradient.abs().max() for gradient in gradients.values())
    for key, gradient in gradients.items():
        torch.testing.assert_close(
            gradients_of_two[key], gradient, rtol=1e-9, atol=1e-12 * largest, msg=key
        )


def test_every_parameter_of_smca_dino_learns_without_an_object_anywhere(of_two):
    """Denoising included: it has no queries then."""
    loss, gradients = of_two['denoising']
    assert loss.isfinite()
    learning = {name for name, p in build('denoising').named_parameters() if p.requires_grad}
    assert gradients.keys() == learning and 'dn_query_generator.label_embedding.weight' in learning
    for name, gradient in gradients.items():
        assert gradient is not None and gradient.isfinite().all(), name


@pytest.mark.parametrize('config', [config for config, *_ in MODELS.values()])
def test_configs_for_coco_have_no_statistics_to_synchronise(config):
    cfg = load_config(config)
    assert cfg.get('sync_bn') is None
    assert cfg.model.backbone.norm_cfg == dict(type='BN', requires_grad=False)
    assert cfg.model.backbone.norm_eval is True


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('runs')
    Shapes(num_train=8, num_val=5, size=64, max_objects=2, seed=0).write(folder / 'data')
    return folder


def shapes_config(folder, batch_size, **changes):
    """Two iterations on eight images; every step has the length to which gradients are clipped."""
    options = {
        'model.backbone.norm_eval': True,
        'model.backbone.norm_cfg.requires_grad': False,
        'train_cfg.max_epochs': 1,
        'train_dataloader.batch_size': batch_size,
        'train_dataloader.dataset.pipeline.2.scale': (64, 64),
        'train_dataloader.dataset.pipeline.3.prob': 0.0,
        'default_hooks.logger.interval': 1,
        'load_from': str(folder / 'start.pth'),
        **changes,
    }
    for phase in ('val', 'test'):
        options[f'{phase}_dataloader.batch_size'] = 2
        options[f'{phase}_dataloader.dataset.pipeline.1.scale'] = (64, 64)
    cfg = small_config(folder / 'data', **options)
    cfg.optim_wrapper.optimizer = dict(type='SGD', lr=1.0, weight_decay=0.0)
    cfg.param_scheduler = []
    return cfg


def weights(path):
    return torch.load(path, weights_only=False)['state_dict']


def assert_same_step(start, one, other):
    """The weights differ by less than 1e-4 of what training changed."""
    assert one.keys() == other.keys()
    step = torch.stack([(one[k] - start[k]).norm() for k in one if one[k].is_floating_point()])
    diff = torch.stack([(one[k] - other[k]).norm() for k in one if one[k].is_floating_point()])
    assert step.norm() > 0.1
    assert diff.norm() < 1e-4 * step.norm()


@pytest.fixture(scope='module')
def of_one(folder):
    """What one process gives, started from a checkpoint that all runs start from."""
    torch.manual_seed(0)
    model = build_detector('small/smca_r18w16_1xb8-11e_shapes128.py')
    model.init_weights()
    start = model.state_dict()
    torch.save(dict(state_dict=start), folder / 'start.pth')
    cfg = shapes_config(folder, batch_size=4)
    cfg.work_dir = str(folder / 'one')
    dump = dict(type='DumpDetResults', out_file_path=str(folder / 'one.pkl'))
    cfg.test_evaluator = [cfg.test_evaluator, dump]
    cfg.experiment_name = 'one_process'
    runner = Runner.from_cfg(cfg)
    runner.train()
    runner.test()
    annotate_detections(folder)
    return start, runner.model.state_dict()


def annotate_detections(folder):
    """Call some detections of the untrained detector objects, for an AP that is not zero."""
    coco = json.loads((folder / 'data/annotations/instances_val.json').read_text())
    coco['annotations'] = []
    for image in pickle.loads((folder / 'one.pkl').read_bytes()):
        found = image['pred_instances']
        for i in range(0, 10, 3):
            x1, y1, x2, y2 = found['bboxes'][i].tolist()
            coco['annotations'].append(
                dict(
                    id=len(coco['annotations']) + 1,
                    image_id=image['img_id'],
                    category_id=coco['categories'][int(found['labels'][i])]['id'],
                    bbox=[x1, y1, x2 - x1, y2 - y1],
                    area=(x2 - x1) * (y2 - y1),
                    iscrowd=0,
                )
            )
    (folder / 'found.json').write_text(json.dumps(coco))


def average_precision(folder, results):
    """AP of detections in a file, against the annotated ones."""
    evaluator = Evaluator(dict(type='CocoMetric', ann_file=str(folder / 'found.json')))
    evaluator.dataset_meta = load_config('small/smca_r18w16_1xb8-11e_shapes128.py').metainfo
    detections = pickle.loads((folder / results).read_bytes())
    return evaluator.offline_evaluate(detections, chunk_size=5)['coco/bbox_mAP']


def write_config(folder, name, cfg):
    path = folder / f'{name}.py'
    cfg.dump(path)
    return path


@pytest.mark.slow
def test_mim_trains_and_evaluates_on_two_processes(of_one, folder):
    start, weights_of_one = of_one
    config = write_config(folder, 'two', shapes_config(folder, batch_size=2))

    def mim(command, *args):
        options = ('--launcher', 'pytorch', '--gpus', 2, '--work-dir', folder / 'two')
        done = run_python('-m', 'mim', command, 'mmsmca', config, *options, *args)
        return done.stdout + done.stderr

    mim('train')
    assert_same_step(start, weights_of_one, weights(folder / 'two/epoch_1.pth'))

    # Five images: one process has three, the other two and one again.
    torch.save(dict(state_dict=weights_of_one), folder / 'one.pth')
    annotations = f'test_evaluator.ann_file={folder / "found.json"}'
    log = mim(
        *('test', '--checkpoint', folder / 'one.pth', '--out', folder / 'two.pkl'),
        *('--cfg-options', annotations),
    )
    ap = average_precision(folder, 'one.pkl')
    assert ap > 0.1
    assert f'coco/bbox_mAP: {ap:.4f}' in log
    ours, theirs = (pickle.loads((folder / name).read_bytes()) for name in ('one.pkl', 'two.pkl'))
    assert [image['img_id'] for image in ours] == [image['img_id'] for image in theirs]
    assert len(ours) == 5
    for one, two in zip(ours, theirs, strict=True):
        for key in ('scores', 'bboxes'):
            torch.testing.assert_close(
                one['pred_instances'][key], two['pred_instances'][key], rtol=1e-3, atol=1e-3
            )


@pytest.mark.parametrize('launcher', ['slurm', 'mpi'])
def test_other_launchers_are_refused_on_a_cpu(launcher):
    with pytest.raises(LauncherError, match=f'{launcher} needs an accelerator.*torchrun'):
        support_processes(load_config('small/smca_r18w16_1xb8-11e_shapes128.py'), launcher)
