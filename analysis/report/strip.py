"""An interval beside the margin that it is judged by, as a strip of SVG."""

from __future__ import annotations

import math

from analysis.ledger import ClaimTest
from analysis.statistics import Interval
from analysis.verdicts import Outcome, outcome_of

WIDTH, HEIGHT, EDGE = 320, 30, 10
COLOURS = {Outcome.CONFIRMED: "#00795a", Outcome.REFUTED: "#b34700", Outcome.UNDECIDED: "#6b6b6b"}


def strip(test: ClaimTest, interval: Interval) -> str:
    """The interval as a bar with its value as a point; green ground where a test is confirmed. Empty where an end is
    not known: such an interval settles nothing."""
    if not interval.is_known:
        return ""
    bounds = _bounds(test)
    known = [interval.low, interval.high, *(bound for bound in bounds if math.isfinite(bound))]
    room = 0.12 * (max(known) - min(known)) or max(abs(known[0]), 1.0)
    least, most = min(known) - room, max(known) + room

    def place(value: float) -> float:
        return EDGE + (WIDTH - 2 * EDGE) * (min(max(value, least), most) - least) / (most - least)

    ground_from, ground_to = place(bounds[0]), place(bounds[1])
    colour, middle = COLOURS[outcome_of(test, interval)], HEIGHT / 2
    low, value, high = place(interval.low), place(interval.value), place(interval.high)
    edges = "".join(
        f'<line x1="{place(bound):.1f}" x2="{place(bound):.1f}" y1="3" y2="{HEIGHT - 3}" stroke="#222" '
        'stroke-dasharray="3 2"/>'
        for bound in bounds
        if math.isfinite(bound)
    )
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="interval and margin" class="strip">'
        f'<rect x="{EDGE}" y="8" width="{WIDTH - 2 * EDGE}" height="{HEIGHT - 16}" fill="#eee"/>'
        f'<rect x="{ground_from:.1f}" y="8" width="{ground_to - ground_from:.1f}" height="{HEIGHT - 16}" '
        'fill="#c9e8dd" class="confirmed-side"/>'
        f'{edges}<line x1="{low:.1f}" x2="{high:.1f}" y1="{middle}" y2="{middle}" stroke="{colour}" stroke-width="4" '
        f'class="interval"/><circle cx="{value:.1f}" cy="{middle}" r="5" fill="{colour}"/></svg>'
    )


def _bounds(test: ClaimTest) -> tuple[float, float]:
    """From where to where the whole interval must lie."""
    if test.target is not None:
        return test.target - test.margin, test.target + test.margin
    return (test.margin, math.inf) if test.confirmed == "above" else (-math.inf, test.margin)
