"""Means over seeds and shares of seeds, with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy
from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over seeds and its 95 % interval (Student's t); the interval is NaN where there is one seed only."""

    mean: float
    low: float
    high: float
    seeds: int

    def __str__(self) -> str:
        if math.isnan(self.low):
            return f"{self.mean:+.3f} (1 seed)"
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def estimate(values: Sequence[float]) -> Estimate:
    """Of one value a seed. NaN where any of them is."""
    found = numpy.asarray(values, dtype=numpy.float64)
    mean = float(found.mean()) if len(found) else math.nan
    if len(found) < 2 or math.isnan(mean):
        return Estimate(mean=mean, low=math.nan, high=math.nan, seeds=len(found))
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, len(found) - 1) * stats.sem(found))
    return Estimate(mean=mean, low=mean - half, high=mean + half, seeds=len(found))


@dataclass(frozen=True, kw_only=True)
class ShareOfSeeds:
    """How many of so many seeds did something, with the exact 95 % interval (Clopper-Pearson) of the share.

    For what differs widely from seed to seed: an interval of the mean then says more about the largest of them.
    """

    count: int
    seeds: int
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.count} of {self.seeds} seeds [{self.low:.2f}, {self.high:.2f}]"


def share_of_seeds(did: Sequence[bool]) -> ShareOfSeeds:
    """Of one answer a seed; without any seed every share is possible."""
    if not did:
        return ShareOfSeeds(count=0, seeds=0, low=0.0, high=1.0)
    interval = stats.binomtest(sum(did), len(did)).proportion_ci(CONFIDENCE, method="exact")
    return ShareOfSeeds(count=sum(did), seeds=len(did), low=float(interval.low), high=float(interval.high))
