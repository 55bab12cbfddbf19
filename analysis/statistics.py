"""Intervals and paired differences, between numbers of single seeds and a verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 9999


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A number and how far it can be trusted. low and high equal value where the number is exact; NaN where one seed
    alone says nothing about others. seeds: how many it is made of."""

    value: float
    low: float
    high: float
    seeds: int

    @property
    def is_known(self) -> bool:
        """False where any of the three is NaN or infinite: such an interval settles nothing."""
        return all(map(math.isfinite, (self.value, self.low, self.high)))


def t_interval(values: Sequence[float]) -> Interval:
    """Mean of one value a seed and its 95 % interval (Student's t); NaN ends for fewer than two."""
    found = numpy.asarray(values, dtype=numpy.float64)
    mean = float(found.mean()) if len(found) else math.nan
    if len(found) < 2:
        return Interval(value=mean, low=math.nan, high=math.nan, seeds=len(found))
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, len(found) - 1)) * float(stats.sem(found))
    return Interval(value=mean, low=mean - half, high=mean + half, seeds=len(found))


def bootstrap_interval(values: Sequence[float], seed: int = 0) -> Interval:
    """Mean of independent values (streams, items) and its 95 % percentile bootstrap interval; NaN ends for fewer than
    two. For values whose distribution is far from normal; with fewer than ten it is too narrow, use `t_interval`."""
    found = numpy.asarray(values, dtype=numpy.float64)
    mean = float(found.mean()) if len(found) else math.nan
    if len(found) < 2:
        return Interval(value=mean, low=math.nan, high=math.nan, seeds=len(found))
    drawn = stats.bootstrap(
        (found,), numpy.mean, confidence_level=CONFIDENCE, n_resamples=RESAMPLES, method="percentile",
        rng=numpy.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    return Interval(value=mean, low=float(drawn.low), high=float(drawn.high), seeds=len(found))


def share_interval(count: int, of: int) -> Interval:
    """`count` of `of` and the exact 95 % interval of the share (Clopper-Pearson); of none, every share is possible."""
    if not 0 <= count <= of:
        raise ValueError(f"{count} of {of} is no share; give a count from 0 to {of}")
    if of == 0:
        return Interval(value=math.nan, low=0.0, high=1.0, seeds=0)
    exact = stats.binomtest(count, of).proportion_ci(CONFIDENCE, method="exact")
    return Interval(value=count / of, low=float(exact.low), high=float(exact.high), seeds=of)


def exact_interval(values: Sequence[float]) -> Interval:
    """Of a number that no draw enters: its ends are the smallest and largest value found."""
    found = [float(value) for value in values]
    if not found:
        return Interval(value=math.nan, low=math.nan, high=math.nan, seeds=0)
    return Interval(value=sum(found) / len(found), low=min(found), high=max(found), seeds=len(found))


def paired_differences(own: Mapping[int, float], against: Mapping[int, float]) -> dict[int, float]:
    """{seed: own - against} of the seeds that both have, by seed."""
    return {seed: own[seed] - against[seed] for seed in sorted(own.keys() & against.keys())}
