"""Every config trains and infers as it is written: what builds does not always run."""

import copy
import json
from functools import cache

import mmdet
import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.structures import InstanceData
from mmengine.utils import digit_version
from utils import ROOT, load_config, shrink

from mmsmca.checks.keys import custom_key_faults, key_faults
from mmsmca.checks.schedule import schedule_faults
from mmsmca.studies.record import StudyError
from mmsmca.studies.study import study_configs

CONFIGS = sorted(
    path.relative_to(ROOT / 'configs').as_posix()
    for path in (ROOT / 'configs').rglob('*.py')
    if not {'_base_', 'studies'} & set(path.parts)
)
# The backbones of these configs are as written.
WHOLE = ('smca_r50_8xb2-50e', 'smca_r101_8xb2-50e', 'smca_r50-dc5_8xb1-50e')
# Height and width: padded to one size, each has empty cells.
SIZES = ((64, 96), (96, 64))


@cache
def load_all() -> dict[str, Config]:
    """Configs and experiments of studies by name."""
    cfgs = {name: load_config(name) for name in CONFIGS}
    for path in sorted((ROOT / 'configs/studies').glob('*.py')):
        for name, cfg in study_configs(path).items():
            cfg.model.backbone.init_cfg = None
            cfgs[f'{path.stem}/{name}'] = cfg
    return cfgs


@cache
def load_small() -> dict[str, Config]:
    """One small config of all that train the same with the same."""
    kinds: dict[str, str] = {}
    cfgs = copy.deepcopy(load_all())
    for name, cfg in cfgs.items():
        if not any(whole in name for whole in WHOLE):
            shrink(cfg.model)
        kind = json.dumps([cfg.model, cfg.optim_wrapper], sort_keys=True, default=repr)
        kinds.setdefault(kind, name)
    return {name: cfgs[name] for name in kinds.values()}


def small_batch(num_classes: int) -> dict:
    """Two images of different sizes, as a data loader gives them; the second with two objects."""
    generator = torch.Generator().manual_seed(0)
    samples = []
    for count, (height, width) in enumerate(SIZES, start=1):
        instances = InstanceData(
            bboxes=torch.tensor([[8.0, 16.0, 40.0, 56.0], [20.0, 4.0, 60.0, 30.0]])[:count],
            labels=torch.tensor([0, num_classes - 1])[:count],
        )
        size = {key: (height, width) for key in ('img_shape', 'ori_shape')}
        sample = DetDataSample(metainfo=dict(img_id=count, scale_factor=(1.0, 1.0), **size))
        sample.gt_instances = instances
        samples.append(sample)
    inputs = [
        torch.randint(256, (3, *size), generator=generator, dtype=torch.uint8) for size in SIZES
    ]
    return dict(inputs=inputs, data_samples=samples)


def test_every_key_is_known():
    for name, cfg in load_all().items():
        assert not list(key_faults(cfg)), name


def by_distribution(name: str):
    """The DINO of MMDetection 3.3 encodes the positions of queries for 256 channels alone."""
    cfg = load_small()[name]
    small_dino = cfg.model.type == 'DINO' and cfg.model.bbox_head.get('embed_dims', 256) < 256
    if small_dino and digit_version(mmdet.__version__) < digit_version('3.5.0'):
        return pytest.param(name, marks=pytest.mark.xfail(strict=True, raises=RuntimeError))
    return name


@pytest.mark.parametrize('name', [by_distribution(name) for name in load_small()])
def test_trains_one_step_and_infers(name):
    torch.manual_seed(0)
    cfg = load_small()[name]
    model = MODELS.build(cfg.model)
    assert not list(custom_key_faults(cfg, model))
    model.init_weights()
    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    num_classes = model.bbox_head.num_classes
    batch = small_batch(num_classes)

    model.train()
    inputs = model.data_preprocessor(batch, training=True)
    loss, losses = model.parse_losses(model(**inputs, mode='loss'))
    assert all(value.isfinite().all() for value in losses.values()), losses
    optim_wrapper.backward(loss)
    gradients = {key: p.grad for key, p in model.named_parameters() if p.requires_grad}
    without = [key for key, gradient in gradients.items() if gradient is None]
    assert not without or not type(model).__module__.startswith('mmsmca')
    assert all(gradient is None or gradient.isfinite().all() for gradient in gradients.values())
    optim_wrapper.step()

    model.eval()
    with torch.no_grad():
        results = model(**model.data_preprocessor(batch), mode='predict')
    for result, (height, width) in zip(results, SIZES, strict=True):
        found = result.pred_instances
        assert len(found) == cfg.model.test_cfg.max_per_img
        assert found.scores.isfinite().all()
        assert (found.labels < num_classes).all()
        assert (found.bboxes >= 0).all()
        assert (found.bboxes <= torch.tensor([width, height] * 2)).all()


def test_encoders_of_a_study_have_priors_of_one_width():
    """Else the ablation of the encoder would be one of the prior too."""
    widths: dict[float, set[float]] = {}
    for cfg in study_configs(ROOT / 'configs/studies/encoder_shapes.py').values():
        strides = list(cfg.model.strides)
        if cfg.model.encoder.get('type') == 'SMCAConvEncoder':
            strides[0] *= 2  # it halves the finest level
        betas = cfg.model.decoder.layer_cfg.spatial_prior_cfg.beta
        for stride, beta in zip(strides, betas, strict=True):
            widths.setdefault(stride, set()).add(beta)
    assert widths == {8: {16.0}, 16: {8.0}, 32: {4.0}}


def test_a_study_names_configs_of_packages(tmp_path):
    study = tmp_path / 'study.py'
    text = "baseline = 'detr'\nseeds = [0]\nexperiments = [dict(name='detr', config={!r})]"
    study.write_text(text.format('mmdet::detr/detr_r50_8xb2-150e_coco.py'))
    assert study_configs(study)['detr'].model.type == 'DETR'
    study.write_text(text.format('mmdet::detr/nothing.py'))
    with pytest.raises(StudyError, match='mmdet::detr/nothing.py'):
        study_configs(study)


def test_own_data_follows_its_first_lines(tmp_path, monkeypatch):
    """Number of images and classes are all that a copy of the config needs to be told."""
    text = (ROOT / 'configs/own_data/smca-dino_r50_own-data.py').read_text()
    text = text.replace("('bolt', 'nut')", "('bolt', 'nut', 'screw')")
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'data/mine/annotations').mkdir(parents=True)
    for num_images, iters in ((16, 576), (200, 2016), (9000, 13680)):
        images = [dict(id=i, file_name='a.png') for i in range(num_images)]
        (tmp_path / 'data/mine/annotations/train.json').write_text(json.dumps(dict(images=images)))
        (tmp_path / 'mine.py').write_text(text)
        cfg = Config.fromfile('mine.py')
        assert cfg.train_cfg.max_iters == iters == 12 * cfg.train_cfg.val_interval
        assert not list(schedule_faults(cfg, iters))
    assert cfg.model.bbox_head.num_classes == 3
    assert cfg.model.backbone.init_cfg is None
    # What training dumps needs neither the data nor this folder.
    cfg.dump('dumped.py')
    monkeypatch.chdir(ROOT)
    assert Config.fromfile(tmp_path / 'dumped.py').to_dict() == cfg.to_dict()
    (tmp_path / 'mine.py').write_text(text.replace("load_from = 'start.pth'", 'load_from = None'))
    assert Config.fromfile(tmp_path / 'mine.py').model.backbone.init_cfg
