"""When a run is lost, and how long before the monitor said so."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy


def lost_step(own: Mapping[int, float], reference: Mapping[int, float], smoothed_steps: int, margin: float) -> float:
    """First step from which `own` stays above `reference` by more than `margin` to the reference's end; inf if never.

    own, reference: loss by step. The excess is averaged over the last `smoothed_steps` steps (fewer at the start). A
    step that `own` never reached, or where it is NaN, counts as infinitely above.
    """
    steps = sorted(reference)
    excess = numpy.array([own.get(step, math.inf) - reference[step] for step in steps])
    excess = numpy.where(numpy.isnan(excess), math.inf, excess)
    means = [excess[max(0, place + 1 - smoothed_steps) : place + 1].mean() for place in range(len(steps))]
    healthy = [place for place, mean in enumerate(means) if mean <= margin]
    if not healthy:
        return float(steps[0])
    return math.inf if healthy[-1] == len(steps) - 1 else float(steps[healthy[-1] + 1])


def first_alarm(steps_by_kind: Mapping[str, float]) -> tuple[str, float] | None:
    """(kind, step) of the earliest alarm, None without any; of several in one step the first by name."""
    if not steps_by_kind:
        return None
    kind = min(steps_by_kind, key=lambda name: (steps_by_kind[name], name))
    return kind, steps_by_kind[kind]
