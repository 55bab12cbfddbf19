"""Preferences at the beginning and at the end of long streams."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy

from analysis.listening.judging import FIRST, Preference, preference, turned_to_ttt
from analysis.statistics import CONFIDENCE, RESAMPLES, Interval
from analysis.tables import Table

EARLY_END, LATE_START = 0.25, 0.75
"""Shares of a stream: its first quarter, and its last."""
FEWEST_ITEMS_OF_A_PART = 10
"""Below, a part has its share and no interval: see the table of README.md."""


@dataclass(frozen=True, kw_only=True)
class AlongStream:
    """How two systems compare early and late. change: share won late less share won early."""

    early: Preference
    late: Preference
    change: Interval


def along_streams(
    judgements: Table, ttt: set[str], places: Mapping[str, float], seed: int = 0
) -> tuple[AlongStream, ...]:
    """Of TTT against all else, then of every pair of systems; of those alone that were judged early and late.

    judgements: as `judgement_table` gives them. places: {item: share of the stream that lies before it}.
    """
    if not places:
        return ()
    groups = [("TTT", "no TTT", turned_to_ttt(judgements, ttt))]
    groups += [(first, second, rows) for (first, second), rows in judgements.groupby(["first", "second"])]
    found = []
    for first, second, rows in groups:
        at = rows["item"].map(places)
        early, late = rows[at < EARLY_END], rows[at >= LATE_START]
        if len(early) and len(late):
            parts = [_part(part, first, second, seed) for part in (early, late)]
            found.append(AlongStream(early=parts[0], late=parts[1], change=_change(early, late, seed)))
    return tuple(found)


def _part(rows: Table, first: str, second: str, seed: int) -> Preference:
    found = preference(rows, first, second, seed)
    if found.items >= FEWEST_ITEMS_OF_A_PART:
        return found
    return replace(found, share=_alone(found.share), share_ties_halved=_alone(found.share_ties_halved))


def _alone(interval: Interval) -> Interval:
    return replace(interval, low=math.nan, high=math.nan)


def _change(early: Table, late: Table, seed: int) -> Interval:
    """95 % percentile bootstrap over items, the two parts drawn apart; NaN ends where one has too few."""
    random = numpy.random.default_rng(seed)
    ends, drawn, fewest = [], [], math.inf
    for rows in (early, late):
        of_item = rows.assign(won=rows["outcome"] == FIRST).groupby("item")["won"].agg(["sum", "count"]).to_numpy(float)
        ends.append(of_item[:, 0].sum() / of_item[:, 1].sum())
        sample = of_item[random.integers(0, len(of_item), size=(RESAMPLES, len(of_item)))].sum(axis=1)
        drawn.append(sample[:, 0] / sample[:, 1])
        fewest = min(fewest, len(of_item))
    low, high = numpy.quantile(drawn[1] - drawn[0], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    change = Interval(value=float(ends[1] - ends[0]), low=float(low), high=float(high), seeds=int(fewest))
    return change if fewest >= FEWEST_ITEMS_OF_A_PART else _alone(change)
