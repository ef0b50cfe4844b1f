"""The numbers of a report, each computed once: means, paired differences, curves."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import numpy as np
from scipy import stats

from .logs import METRICS
from .published import Published
from .results import Report, Result

# Fractions of the baseline's final AP to reach, besides that AP itself.
FRACTIONS = (0.5, 0.75, 0.9)
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Value:
    """Mean and standard deviation of some numbers.

    Attributes:
        mean: Mean.
        std: Sample standard deviation (n - 1); None for a single number.
        n: Number of values.
    """

    mean: float
    std: float | None
    n: int


def value(numbers: Iterable[float | None]) -> Value | None:
    """Mean and deviation of the known numbers; None if all are None."""
    known = [number for number in numbers if number is not None]
    if not known:
        return None
    return Value(fmean(known), statistics.stdev(known) if len(known) > 1 else None, len(known))


@dataclass(frozen=True)
class Difference:
    """Difference between an experiment's final AP and the baseline's, paired by seed.

    Attributes:
        seeds: Differences by seed, for the seeds that both have. If empty, ``mean`` is the
            difference of the means.
        mean: Mean of the differences.
        low: Lower end of the mean's 95 % t interval; None for a single seed, and if all
            differences are equal, as their spread cannot be estimated.
        high: Upper end of the interval.
        p: p value of the paired t test.
        p_holm: p value after Holm's correction over the experiments of the report.
    """

    seeds: dict[int, float]
    mean: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_holm: float | None = None

    @property
    def supported(self) -> bool:
        """Whether the difference is significant at 5 % after Holm's correction."""
        return self.p_holm is not None and self.p_holm < 1 - CONFIDENCE


def difference(runs: Sequence[Result], baseline: Sequence[Result]) -> Difference | None:
    """Difference between the final APs of two experiments, without Holm's correction.

    Args:
        runs: Finished runs of one experiment.
        baseline: Finished runs of the experiment to subtract.

    Returns:
        The difference; None if either experiment has no AP.
    """
    ours, theirs = ({run.seed: run.final['AP'] for run in side} for side in (runs, baseline))
    pairs = {
        seed: (ap, other)
        for seed, ap in ours.items()
        if seed is not None and ap is not None and (other := theirs.get(seed)) is not None
    }
    if not pairs:
        means = [value(side.values()) for side in (ours, theirs)]
        return Difference({}, means[0].mean - means[1].mean) if means[0] and means[1] else None
    seeds = {seed: ap - other for seed, (ap, other) in pairs.items()}
    found = Difference(seeds, fmean(seeds.values()))
    # APs have three decimals: smaller differences are rounding errors.
    if len(seeds) < 2 or np.ptp(list(seeds.values())) < 1e-9:
        return found
    test = stats.ttest_rel(*zip(*pairs.values(), strict=True))
    low, high = map(float, test.confidence_interval(CONFIDENCE))
    return replace(found, low=low, high=high, p=float(test.pvalue))


def holm(differences: dict[str, Difference]) -> dict[str, Difference]:
    """Add p values after Holm's correction for the number of tested differences."""
    tested = sorted((d.p, name) for name, d in differences.items() if d.p is not None)
    corrected, largest = dict(differences), 0.0
    for i, (p, name) in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - i) * p))
        corrected[name] = replace(differences[name], p_holm=largest)
    return corrected


@dataclass(frozen=True)
class Point:
    """One evaluation on the AP curve of an experiment.

    Attributes:
        iteration: Iterations trained by then.
        step: Epochs or iterations, whichever the report counts.
        seconds: Training time by then, mean over the runs; None if it was not logged.
        AP: Mean AP over the runs.
        lowest: AP of the worst run.
        highest: AP of the best run.
    """

    iteration: int
    step: int
    seconds: float | None
    AP: float
    lowest: float
    highest: float


def curve(runs: Sequence[Result], unit: str) -> list[Point]:
    """AP of an experiment over training, at the evaluations that all runs have.

    Args:
        runs: Runs of the experiment. If any are finished, the others are ignored.
        unit: "epochs" or "iterations".
    """
    runs = [r for r in runs if r.finished and r.evaluations] or [r for r in runs if r.evaluations]
    if not runs:
        return []
    by_step = [{getattr(e, unit[:-1]): e for e in run.evaluations} for run in runs]
    points = []
    for step in sorted(set.intersection(*map(set, by_step))):
        evaluations = [run[step] for run in by_step]
        aps = [ap for e in evaluations if (ap := e.metrics['AP']) is not None]
        seconds = [e.seconds for e in evaluations if e.seconds is not None]
        if len(aps) == len(runs):
            mean_seconds = fmean(seconds) if len(seconds) == len(runs) else None
            iteration = evaluations[0].iteration
            points.append(Point(iteration, step, mean_seconds, fmean(aps), min(aps), max(aps)))
    return points


@dataclass(frozen=True)
class Reached:
    """When an experiment reaches an AP.

    Attributes:
        AP: The AP, between 0 and 1.
        step: Step of the first evaluation whose mean over the runs reaches it; None if never.
        seconds: Training time by then.
        seeds: ``step`` of every finished run by itself.
    """

    AP: float
    step: int | None
    seconds: float | None
    seeds: list[int | None]


def reached(runs: Sequence[Result], ap: float, unit: str) -> Reached:
    """When finished runs, on average and each by itself, first reach an AP.

    Args:
        runs: Finished runs of an experiment.
        ap: AP to reach, between 0 and 1.
        unit: "epochs" or "iterations".
    """

    def first(runs: Sequence[Result]) -> tuple[int | None, float | None]:
        points = (p for p in curve(runs, unit) if p.AP >= ap)
        return next(((point.step, point.seconds) for point in points), (None, None))

    return Reached(ap, *first(runs), [first([run])[0] for run in runs])


@dataclass(frozen=True)
class Numbers:
    """All numbers of an experiment: APs between 0 and 1, times in seconds, memory in MiB.

    Attributes:
        name: Name of the experiment.
        seeds: Number of finished runs.
        lengths: Distinct lengths of its runs, in iterations or epochs.
        final: Metrics of the last evaluation, over the finished runs.
        difference: Difference to the baseline; None for the baseline itself.
        reached: When the experiment reaches the APs of the report.
        iteration_seconds: Time per iteration; per run, the median between evaluations.
        total_seconds: Training time until the last evaluation, over the finished runs.
        peak_memory_mib: Largest peak memory of its runs.
        parameters: Number of parameters of the model.
        flops: Multiply-adds for one image.
        latency_ms: Latency of inference on one image, in milliseconds.
        published: Published result, if the study names one.
        curve: AP over training.
    """

    name: str
    seeds: int
    lengths: list[int]
    final: dict[str, Value | None]
    difference: Difference | None
    reached: list[Reached]
    iteration_seconds: Value | None
    total_seconds: Value | None
    peak_memory_mib: float | None
    parameters: float | None
    flops: float | None
    latency_ms: float | None
    published: Published | None
    curve: list[Point]

    @property
    def ap(self) -> float | None:
        """Mean of the final APs."""
        final = self.final['AP']
        return final.mean if final else None


def numbers(report: Report, levels: Sequence[float] | None = None) -> list[Numbers]:
    """Compute the numbers of a report's experiments, in the report's order.

    Args:
        report: The report.
        levels: APs to reach, between 0 and 1. Defaults to None: fractions of the baseline's final
            AP. The final AP itself is always appended.
    """
    finished = {name: [r for r in report.runs_of(name) if r.final] for name in report.experiments}
    baseline = finished[report.baseline]
    final = value(run.final['AP'] for run in baseline)
    aps = [f * final.mean for f in FRACTIONS if final] if levels is None else sorted(levels)
    aps += [final.mean] if final else []
    differences = holm(
        {
            name: found
            for name, runs in finished.items()
            if name != report.baseline and (found := difference(runs, baseline))
        }
    )
    measured = report.costs.get('experiments', {})
    computed = []
    for name, runs in finished.items():
        every = report.runs_of(name)
        costs: dict[str, Any] = measured.get(name, {})
        computed.append(
            Numbers(
                name,
                len(runs),
                sorted({run.length for run in runs if run.length}),
                {metric: value(run.final[metric] for run in runs) for metric in METRICS},
                differences.get(name),
                [reached(runs, ap, report.unit) for ap in aps],
                value(map(_iteration_seconds, every)),
                value(run.evaluations[-1].seconds for run in runs),
                max((run.peak_memory_mib for run in every if run.peak_memory_mib), default=None),
                costs.get('parameters'),
                costs.get('flops'),
                costs.get('latency_ms'),
                report.published.get(name),
                curve(every, report.unit),
            )
        )
    return computed


def _iteration_seconds(run: Result) -> float | None:
    known = [(0, 0.0), *((e.iteration, e.seconds) for e in run.evaluations if e.seconds)]
    steps = [(t - s) / (j - i) for (i, s), (j, t) in zip(known, known[1:], strict=False)]
    return statistics.median(steps) if steps else None
