"""The numbers of a report, each computed once: means, paired differences, curves."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np
import pandas as pd
from scipy import stats

from .logs import METRICS
from .results import Report

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


def value(numbers: pd.Series) -> Value | None:
    """Mean and deviation of the known numbers; None if there are none."""
    known = numbers.dropna()
    if known.empty:
        return None
    return Value(fmean(known), float(known.std()) if len(known) > 1 else None, len(known))


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
    def significant(self) -> bool:
        """Whether the difference is significant at 5 % after Holm's correction."""
        return self.p_holm is not None and self.p_holm < 1 - CONFIDENCE


def difference(runs: pd.DataFrame, baseline: pd.DataFrame) -> Difference | None:
    """Difference of the final APs of two experiments' runs, before Holm's correction."""
    known = [side[['seed', 'AP']].dropna() for side in (runs, baseline)]
    pairs = known[0].merge(known[1], on='seed', validate='one_to_one').sort_values('seed')
    if pairs.empty:
        means = [value(side.AP) for side in (runs, baseline)]
        return Difference({}, means[0].mean - means[1].mean) if means[0] and means[1] else None
    differences = pairs.AP_x - pairs.AP_y
    seeds = dict(zip(pairs.seed.astype(int).tolist(), differences.tolist(), strict=True))
    found = Difference(seeds, float(differences.mean()))
    # APs have three decimals: smaller differences are rounding errors.
    if len(seeds) < 2 or np.ptp(differences) < 1e-9:
        return found
    test = stats.ttest_rel(pairs.AP_x, pairs.AP_y)
    low, high = map(float, test.confidence_interval(CONFIDENCE))
    return replace(found, low=low, high=high, p=float(test.pvalue))


def holm(differences: dict[str, Difference]) -> dict[str, Difference]:
    """Add p values after Holm's correction for the number of tested differences."""
    ps = pd.Series({name: d.p for name, d in differences.items()}, dtype=float).dropna()
    ps = ps.sort_values()
    corrected = (ps * np.arange(len(ps), 0, -1)).clip(upper=1).cummax()
    return {
        name: replace(d, p_holm=float(corrected[name])) if name in corrected else d
        for name, d in differences.items()
    }


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


@dataclass(frozen=True)
class Numbers:
    """All numbers of an experiment: APs between 0 and 1, times in seconds, memory in MiB.

    Attributes:
        name: Name of the experiment.
        seeds: Number of finished runs.
        lengths: Distinct lengths of its runs, in iterations or epochs.
        final: Metrics after the last iteration, over the finished runs.
        difference: Difference to the baseline; None for the baseline itself.
        reached: When the experiment reaches the APs of the report.
        iteration_seconds: Time per iteration; per run, the median between evaluations.
        total_seconds: Training time, over the finished runs whose log has the last evaluation.
        peak_memory_mib: Largest peak memory of its runs.
        curve: AP over training, at the evaluations that all its runs have, those that are not
            finished aside if any is: ``step``, ``iteration``, ``seconds`` (mean over the runs, NaN
            if unknown), ``AP`` (mean), ``lowest`` and ``highest``.
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
    curve: pd.DataFrame

    @property
    def ap(self) -> float | None:
        """Mean of the final APs."""
        final = self.final['AP']
        return final.mean if final else None


def numbers(report: Report, levels: Sequence[float] | None = None) -> list[Numbers]:
    """Compute the numbers of a report's experiments.

    ``levels`` are APs to reach, between 0 and 1, by default fractions of the baseline's final AP.
    The final AP itself is always appended.
    """
    finished = {name: report.runs_of(name).dropna(subset='AP') for name in report.experiments}
    baseline = finished[report.baseline]
    final = value(baseline.AP)
    aps = [f * final.mean for f in FRACTIONS if final] if levels is None else sorted(levels)
    aps += [final.mean] if final else []
    lengths = report.runs.set_index('name').length
    differences = holm(
        {
            name: found
            for name, runs in finished.items()
            if name != report.baseline and (found := difference(runs, baseline))
        }
    )
    computed = []
    for name, runs in finished.items():
        every = report.runs_of(name)
        evaluations = report.evaluations[report.evaluations.run.isin(every.name)]
        of_finished = evaluations[evaluations.run.isin(runs.name)]
        by_run = evaluations.groupby('run', sort=False)
        own = [_curve(of_finished[of_finished.run == run]) for run in runs.name]
        mean = _curve(of_finished if len(of_finished) else evaluations)
        over_finished = mean if len(of_finished) else mean.iloc[:0]
        peak = every.peak_memory_mib.max()
        computed.append(
            Numbers(
                name,
                len(runs),
                sorted(map(int, every.length.dropna().unique())),
                {metric: value(runs[metric]) for metric in METRICS},
                differences.get(name),
                [
                    Reached(ap, *_first(over_finished, ap), [_first(one, ap)[0] for one in own])
                    for ap in aps
                ],
                value(by_run[['seconds', 'iteration']].apply(_iteration_seconds)),
                value(of_finished[of_finished.step == of_finished.run.map(lengths)].seconds),
                None if np.isnan(peak) else float(peak),
                mean,
            )
        )
    return computed


def _curve(evaluations: pd.DataFrame) -> pd.DataFrame:
    """AP of some runs over training, see :class:`Numbers`."""
    by_step = {
        key: evaluations.pivot(index='step', columns='run', values=key)
        for key in ('AP', 'iteration', 'seconds')
    }
    aps = by_step['AP'].dropna()
    points = pd.DataFrame(
        dict(
            iteration=by_step['iteration'].loc[aps.index].min(axis=1),
            seconds=by_step['seconds'].loc[aps.index].mean(axis=1, skipna=False),
            # Exactly rounded, as a mean may be compared with itself: when is the final AP reached?
            AP=[fmean(row) for row in aps.to_numpy()],
            lowest=aps.min(axis=1),
            highest=aps.max(axis=1),
        )
    )
    return points.reset_index()


def _first(curve: pd.DataFrame, ap: float) -> tuple[int | None, float | None]:
    """Step and training time of the first point of a curve that reaches an AP."""
    reached = curve[curve.AP >= ap]
    if reached.empty:
        return None, None
    first = reached.iloc[0]
    return int(first.step), None if np.isnan(first.seconds) else float(first.seconds)


def _iteration_seconds(evaluations: pd.DataFrame) -> float:
    known = evaluations[evaluations.seconds > 0]
    times = np.diff(known.seconds, prepend=0) / np.diff(known.iteration, prepend=0)
    return float(np.median(times)) if len(times) else np.nan
