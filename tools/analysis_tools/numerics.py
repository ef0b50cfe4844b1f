"""Some steps of training in mixed precision: whether losses and weights stay finite."""

import math

import torch

from . import benchmarks
from .detector_cost import Case, Setting


class NotFiniteError(ArithmeticError):
    """A loss or a weight that is infinite or no number."""


def measure(name: str, setting: Setting, steps: int) -> list[dict]:
    """Train a detector for some steps on one batch of random images.

    Args:
        name: Path of the config, or ``package::path``.
        setting: What it is trained on, and in which precision.
        steps: Number of steps.

    Returns:
        One row: the ``outcome``, which is a failure where anything is not finite, the mean loss of
        the first and of the last tenth of the steps, and, where losses are scaled, their scale in
        the end and how many steps were skipped until it fitted.
    """
    row: dict = dict(config=name, dtype=setting.dtype, steps=steps)
    with benchmarks.outcome_in(row):
        row.update(train(Case(name, setting), steps))
    return [row]


def train(case: Case, steps: int) -> dict[str, float]:
    """Train for some steps.

    Args:
        case: The detector.
        steps: Number of steps.

    Returns:
        What :func:`measure` says of it.

    Raises:
        NotFiniteError: If a loss or, in the end, a weight is not finite.
    """
    scaler = getattr(case.optim_wrapper, 'loss_scaler', None)
    scales = [scaler.get_scale()] if scaler else []
    losses = []
    for step in range(1, steps + 1):
        losses.append(case.train()['loss'].item())
        if not math.isfinite(losses[-1]):
            raise NotFiniteError(f'the loss of step {step} is {losses[-1]}')
        if scaler:
            scales.append(scaler.get_scale())
    for parameter, weight in case.model.state_dict().items():
        if not torch.isfinite(weight).all():
            raise NotFiniteError(f'after {steps} steps {parameter} is not finite')
    tenth = max(1, steps // 10)
    found = dict(
        first_loss=sum(losses[:tenth]) / tenth,
        last_loss=sum(losses[-tenth:]) / tenth,
    )
    if scales:
        found['loss_scale'] = scales[-1]
        # A gradient that overflows halves the scale, and its step is skipped.
        found['skipped_steps'] = sum(b < a for a, b in zip(scales, scales[1:], strict=False))
    return found
