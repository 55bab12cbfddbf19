"""Two-sided limits of every measure, taken from real speech, and how far a window leaves them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from experiments.quality.windows import Window, finest_differences

OUTER_SHARE = 0.005
"""Of real windows lie above a measure's upper limit, and as many below its lower one."""
FEWEST_WINDOWS = 20


@dataclass(frozen=True, kw_only=True)
class Limit:
    """What one measure is in real speech: its median and its lower and upper limit."""

    middle: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Deviation:
    """The measure that leaves its limits furthest: by its name, and how far, 1 being at a limit."""

    measure: str
    size: float


def fit_limits(real: Sequence[Window]) -> dict[str, Limit]:
    """Limits of windows of one kind of real speech: quantiles, at least a measure's finest difference from the median.

    A measure that no window has is left out. ValueError for fewer than 20 windows, or windows of several kinds.
    """
    kinds = {type(window) for window in real}
    if len(real) < FEWEST_WINDOWS or len(kinds) != 1:
        raise ValueError(
            f"limits take {FEWEST_WINDOWS} windows or more of one kind, got {len(real)} of "
            f"{sorted(kind.__name__ for kind in kinds)}"
        )
    limits = {}
    for name, finest in finest_differences(kinds.pop()).items():
        values = np.array([getattr(window, name) for window in real])
        values = values[np.isfinite(values)]
        if len(values):
            low, middle, high = np.quantile(values, [OUTER_SHARE, 0.5, 1 - OUTER_SHARE])
            limits[name] = Limit(
                middle=float(middle), low=float(min(low, middle - finest)), high=float(max(high, middle + finest))
            )
    return limits


def deviation(measures: Mapping[str, float], limits: Mapping[str, Limit]) -> Deviation:
    """How far a window is from the median, as a share of the way to the limit, for its farthest measure.

    A measure that is NaN says nothing. ValueError where a measure that has limits is missing.
    """
    missing = sorted(set(limits) - set(measures))
    if missing:
        raise ValueError(
            f"the window has no {', '.join(missing)}: these limits are of another kind of window; it has "
            f"{', '.join(measures)}"
        )
    farthest = Deviation(measure="", size=0.0)
    for name, limit in limits.items():
        away = measures[name] - limit.middle
        size = away / (limit.high - limit.middle) if away > 0 else away / (limit.low - limit.middle)
        if not math.isnan(size) and size > farthest.size:
            farthest = Deviation(measure=name, size=size)
    return farthest
