"""Mean, deviation and differences over seeds; convergence; comparison at equal training time."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean

import numpy as np
from scipy import stats

from .logs import METRICS, Evaluation
from .results import Experiment, Run, Study


@dataclass(frozen=True)
class Value:
    """Mean of some numbers.

    Attributes:
        mean: Of the numbers.
        std: Their sample standard deviation (n - 1); None of a single number.
        n: How many.
    """

    mean: float
    std: float | None
    n: int

    def __sub__(self, other: 'Value') -> 'Value':
        """Difference of the means. Its ``std`` is half of Welch's 95 % interval of it."""
        half = None
        if self.std is not None and other.std is not None:
            of_self, of_other = self.std**2 / self.n, other.std**2 / other.n
            half = 0.0
            if variance := of_self + of_other:
                freedom = variance**2 / (of_self**2 / (self.n - 1) + of_other**2 / (other.n - 1))
                half = float(stats.t.ppf(0.975, freedom)) * math.sqrt(variance)
        return Value(self.mean - other.mean, half, min(self.n, other.n))


def value(numbers: Iterable[float | None]) -> Value | None:
    """Mean and deviation of the numbers that are there; None if none is."""
    known = [number for number in numbers if number is not None]
    if not known:
        return None
    std = float(np.std(known, ddof=1)) if len(known) > 1 else None
    return Value(fmean(known), std, len(known))


def difference(a: Value | None, b: Value | None) -> Value | None:
    """``a - b``, None if one of them is missing."""
    return None if a is None or b is None else a - b


# Resamples are enumerated up to these many seeds: 5^5.
EXHAUSTIVE = 5
RESAMPLES = 10_000
# Fewer agree by chance too often: two one time in two.
FEWEST_SEEDS = 3


@dataclass(frozen=True)
class Paired:
    """Differences of two experiments, seed by seed: the same seed has the same order of images.

    Attributes:
        differences: By seed, in the order of the seeds.
        low: Lower end of the 95 % bootstrap interval of their mean.
        high: Its upper end.
    """

    differences: dict[int, float]
    low: float
    high: float

    @property
    def mean(self) -> float:
        """Of the differences."""
        return fmean(self.differences.values())

    @property
    def supported(self) -> bool:
        """Whether the seeds support that there is a difference: at least three, zero outside."""
        return len(self.differences) >= FEWEST_SEEDS and (self.low > 0 or self.high < 0)


def bootstrap_interval(numbers: Sequence[float]) -> tuple[float, float]:
    """95 % percentile interval of the mean, from resamples of the numbers with replacement.

    Up to five numbers all resamples are taken, n^n; beyond, 10,000 of them, the same at every call.
    Of three numbers the interval is the smallest to the largest: it is one that excludes zero if
    all agree, which without any difference happens one time in four.
    """
    values = np.asarray(numbers, dtype=float)
    n = len(values)
    if n <= EXHAUSTIVE:
        picks: np.ndarray = np.stack(np.meshgrid(*[np.arange(n)] * n, indexing='ij')).reshape(n, -1)
    else:
        picks = np.random.default_rng(0).integers(n, size=(n, RESAMPLES))
    means = np.sort(values[picks].mean(axis=0))
    # The ends are resamples that there are: nothing is interpolated.
    low, high = np.quantile(means, (0.025, 0.975), method='inverted_cdf')
    return float(low), float(high)


def paired(a: Experiment, b: Experiment) -> Paired | None:
    """Difference of the final APs, ``a - b``, over the seeds that both have finished runs of."""
    final = [
        {run.seed: run.log.evaluations[-1].metrics['AP'] for run in e.finished} for e in (a, b)
    ]
    differences = {
        seed: ap - other
        for seed, ap in final[0].items()
        if seed is not None and ap is not None and (other := final[1].get(seed)) is not None
    }
    if not differences:
        return None
    return Paired(differences, *bootstrap_interval(list(differences.values())))


def final_metrics(experiment: Experiment) -> dict[str, Value | None]:
    """Metrics of the last evaluation, over the finished runs."""
    last = [run.log.evaluations[-1].metrics for run in experiment.finished]
    return {name: value(metrics[name] for metrics in last) for name in METRICS}


@dataclass(frozen=True)
class Point:
    """An experiment at one evaluation.

    Attributes:
        iteration: Iterations trained by then.
        step: Epochs or iterations, whatever the study counts.
        seconds: Training time by then, mean over the runs; None if it was not logged.
        metrics: Over the runs.
        lowest: AP of the worst run.
        highest: AP of the best run.
    """

    iteration: int
    step: int
    seconds: float | None
    metrics: dict[str, Value | None]
    lowest: float
    highest: float

    @property
    def ap(self) -> Value:
        """AP, which :func:`curve` has of every point."""
        ap = self.metrics['AP']
        assert ap is not None
        return ap


@cache
def curve(experiment: Experiment, unit: str) -> list[Point]:
    """An experiment over its training: at the evaluations that all its runs have.

    Args:
        experiment: Of it the finished runs count; if there are none, those under way.
        unit: "epochs" or "iterations".
    """
    runs = experiment.finished or [run for run in experiment.runs if run.log.evaluations]
    if not runs:
        return []
    by_step = [{_step(e, unit): e for e in run.log.evaluations} for run in runs]
    points = []
    for step in sorted(set.intersection(*map(set, by_step))):
        evaluations = [run[step] for run in by_step]
        aps = [ap for e in evaluations if (ap := e.metrics['AP']) is not None]
        seconds = [e.seconds for e in evaluations if e.seconds is not None]
        if len(aps) < len(runs):
            continue
        points.append(
            Point(
                evaluations[0].iteration,
                step,
                fmean(seconds) if len(seconds) == len(runs) else None,
                {name: value(e.metrics[name] for e in evaluations) for name in METRICS},
                min(aps),
                max(aps),
            )
        )
    return points


def _step(evaluation: Evaluation, unit: str) -> int:
    if unit == 'iterations':
        return evaluation.iteration
    assert evaluation.epoch is not None  # A study counts epochs only if all its runs do.
    return evaluation.epoch


@dataclass(frozen=True)
class Reached:
    """When an experiment reaches an AP.

    Attributes:
        step: First evaluation at which the mean over the runs is at or above it; None if never.
        seconds: Training time by then.
        seeds: The same of every finished run by itself.
    """

    step: int | None
    seconds: float | None
    seeds: list[int | None]


def reached(experiment: Experiment, threshold: float, unit: str) -> Reached:
    """When an experiment, and each of its finished runs, first has an AP at or above a threshold.

    Args:
        experiment: Its finished runs count.
        threshold: Between 0 and 1.
        unit: "epochs" or "iterations".
    """
    points = curve(experiment, unit) if experiment.finished else []
    first = next((p for p in points if p.ap.mean >= threshold), None)
    seeds = [_first(run, threshold, unit) for run in experiment.finished]
    if first is None:
        return Reached(None, None, seeds)
    return Reached(first.step, first.seconds, seeds)


def _first(run: Run, threshold: float, unit: str) -> int | None:
    for evaluation in run.log.evaluations:
        ap = evaluation.metrics['AP']
        if ap is not None and ap >= threshold:
            return _step(evaluation, unit)
    return None


def total_seconds(experiment: Experiment) -> Value | None:
    """Training time until the last evaluation, over the finished runs."""
    return value(run.log.evaluations[-1].seconds for run in experiment.finished)


def at_time(experiment: Experiment, seconds: float, unit: str) -> Point | None:
    """The last evaluation not later than a training time; None if the first one is later.

    Which evaluation that is, the mean time over the runs decides, so that all of them are
    compared at the same iteration.
    """
    points = reversed(curve(experiment, unit))
    return next((p for p in points if p.seconds is not None and p.seconds <= seconds), None)


def equal_time(study: Study, names: Sequence[str]) -> tuple[float, dict[str, Point | None]]:
    """Experiments at the total training time of the fastest of them.

    Args:
        study: The study.
        names: Of experiments that have finished runs and logged times.

    Returns:
        That time in seconds, and where each experiment is then.
    """
    totals = [curve(study[name], study.unit)[-1].seconds for name in names]
    budget = min(seconds for seconds in totals if seconds is not None)
    return budget, {name: at_time(study[name], budget, study.unit) for name in names}


def timed(study: Study) -> list[str]:
    """Names of the experiments that have finished runs and logged times."""
    curves = {e.name: curve(e, study.unit) for e in study.experiments if e.finished}
    return [name for name, points in curves.items() if points and points[-1].seconds is not None]
