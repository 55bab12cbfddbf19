"""What a curve along a stream does: the exponent of its growth, and how long a shock lasts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy
from numpy.typing import NDArray
from scipy import stats

DECADE = 10.0


def growth_exponent(positions: Sequence[int], values: Sequence[float]) -> float:
    """p of values ~ positions^p over the last decade of positions, by least squares in logarithms.

    0 is an equilibrium, 1/2 the growth of a random walk, 1 that of equal steps in one direction. NaN with fewer than
    three positive values in the decade.
    """
    end = max(positions, default=0)
    kept = [
        (math.log(position), math.log(value))
        for position, value in zip(positions, values, strict=True)
        if position > 0 and position * DECADE >= end and value > 0 and math.isfinite(value)
    ]
    if len(kept) < 3:
        return math.nan
    return float(stats.linregress(*zip(*kept, strict=True)).slope)


def half_life(excess: NDArray[numpy.float64], bin_positions: int) -> float:
    """Positions behind a shock until half of its excess is gone: a (bins,) curve, one value for so many positions.

    Half of the first bin's value; gone where two bins in a row are at most that on average, so that a single lucky bin
    does not count. Infinite where that never happens in the curve, NaN where there is no excess to lose.
    """
    if not len(excess) or not excess[0] > 0:
        return math.nan
    for index in range(1, len(excess) - 1):
        if excess[index : index + 2].mean() <= excess[0] / 2:
            return float(index * bin_positions)
    return math.inf
