"""Check a detector's correctness on a device and in a precision: parity and training steps."""

import copy
import inspect
import math
from dataclasses import replace
from typing import Any

import torch
from benchmarks import outcome_in
from cases import Case, Detector, Setting
from torch import Tensor

from mmsmca.models.layers.memory import Memory

# Parameters of the priors: their centres and extents.
PRIOR = ('spatial_prior.', 'center_head.')
# The queries that a decoder starts from.
QUERIES = ('query', 'query_pos', 'reference_points')
_references: dict[str, tuple] = {}


class NotFiniteError(ArithmeticError):
    """A loss or a weight that is infinite or NaN."""


def parity(detector: Detector, setting: Setting) -> list[dict]:
    """Compare a detector with itself on the CPU in float64.

    The decoder starts from the reference's queries, so that near ties of proposals do not reorder
    them. Gradients are those of a weighted sum of all scores and boxes.

    Args:
        detector: The detector, with initial weights and in evaluation mode; parameters that
            start at zero are made random.
        setting: Device and precision, here also ``float64``.

    Returns:
        One row: ``outcome``, and relative errors in the Frobenius norm of the encoder's ``memory``,
        of ``scores``, ``boxes``, and of the gradients of the priors' parameters (``prior_grads``)
        and of all others (``grads``).
    """
    row: dict = dict(config=detector.config, dtype=setting.dtype)
    with outcome_in(row):
        key = repr((detector, setting.batch))
        if key not in _references:
            _references.clear()
            case = detector.build(replace(setting, device='cpu', dtype='float32'))
            for p in case.model.parameters():
                if not p.any():  # Zeros would mask errors in other layers.
                    torch.nn.init.normal_(p, std=0.02)
            on_cpu = replace(setting, device='cpu', dtype='float64')
            _references[key] = case, *_outputs_and_gradients(case, None, on_cpu)
        case, queries, expected = _references[key]
        _, found = _outputs_and_gradients(case, queries, setting)
        row.update({name: relative_error(found[name], x) for name, x in expected.items() if x})
    return [row]


def relative_error(actual: list[Tensor], expected: list[Tensor]) -> float:
    """Norm of the difference divided by the norm of ``expected``, over all tensors together."""
    a, b = (torch.cat([x.detach().double().cpu().flatten() for x in y]) for y in (actual, expected))
    return ((a - b).norm() / b.norm()).item()


def _outputs_and_gradients(
    case: Case, queries: dict | None, setting: Setting
) -> tuple[dict, dict[str, list[Tensor]]]:
    """Run a copy of the model; return the decoder's queries and what :func:`parity` compares."""
    setting.prepare()
    dtype = torch.float64 if setting.dtype == 'float64' else torch.float32
    model = copy.deepcopy(case.model).to(setting.device, dtype).eval()
    data = case.model.data_preprocessor(case.data)
    images, samples = data['inputs'].to(setting.device, dtype), data['data_samples']
    with setting.autocast():
        encoder_inputs, decoder_inputs = model.pre_transformer(model.extract_feat(images), samples)
        encoded = model.forward_encoder(**encoder_inputs)
        given = {'batch_data_samples': samples}
        if 'batch_data_samples' not in inspect.signature(model.pre_decoder).parameters:
            given = {}
        selected, _ = model.pre_decoder(**encoded, **given)
        if queries is None:
            queries = {k: x.detach() for k, x in selected.items() if k in QUERIES}
        moved = {k: x.to(setting.device, dtype) for k, x in queries.items()}
        decoder_inputs.update({**selected, **moved})
        decoded = model.forward_decoder(**decoder_inputs)
        scores, boxes = model.bbox_head(**decoded)[:2]
    loss = sum((x.double() * _weights_of(x)).sum() for x in (scores, boxes))
    parameters = {k: p for k, p in model.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    found: dict[str, list[Tensor]] = dict(prior_grads=[], grads=[])
    for name, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None:
            of_prior = any(part in name for part in PRIOR)
            found['prior_grads' if of_prior else 'grads'].append(gradient)
    memory = encoded['memory']
    memory = memory.tokens if isinstance(memory, Memory) else memory
    return queries, dict(memory=[memory], scores=[scores], boxes=[boxes], **found)


def _weights_of(x: Tensor) -> Tensor:
    weights = torch.linspace(-1, 1, x.numel(), dtype=torch.float64, device=x.device)
    return weights.view_as(x)


def training(detector: Detector, setting: Setting, steps: int) -> list[dict]:
    """Train a detector for some steps on one batch of random images.

    Args:
        detector: The detector.
        setting: Device, precision and batch size.
        steps: Number of steps.

    Returns:
        One row: the ``outcome``, which is a failure if anything is not finite; the mean loss of the
        first and of the last tenth of the steps; and, with loss scaling, the final scale and the
        number of skipped steps.
    """
    row: dict = dict(config=detector.config, dtype=setting.dtype, steps=steps)
    with outcome_in(row):
        row.update(train(detector.build(setting), steps))
    return [row]


def train(case: Case, steps: int) -> dict[str, float]:
    """Train for some steps.

    Returns:
        Losses and loss scaling, as in the row of :func:`training`.

    Raises:
        NotFiniteError: If a loss or, in the end, a weight is not finite.
    """
    scaler: Any = getattr(case.optim_wrapper, 'loss_scaler', None)
    scales = [scaler.get_scale()] if scaler else []
    losses = []
    for step in range(1, steps + 1):
        losses.append(case.train()['loss'].item())  # type: ignore[index]
        if not math.isfinite(losses[-1]):
            raise NotFiniteError(f'the loss of step {step} is {losses[-1]}')
        if scaler:
            scales.append(scaler.get_scale())
    for parameter, weight in case.model.state_dict().items():
        if not torch.isfinite(weight).all():
            raise NotFiniteError(f'after {steps} steps {parameter} is not finite')
    tenth = max(1, steps // 10)
    found = dict(first_loss=sum(losses[:tenth]) / tenth, last_loss=sum(losses[-tenth:]) / tenth)
    if scales:
        found['loss_scale'] = scales[-1]
        # A gradient that overflows halves the scale, and its step is skipped.
        found['skipped_steps'] = sum(b < a for a, b in zip(scales, scales[1:], strict=False))
    return found
