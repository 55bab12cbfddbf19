"""What every suspect does alone, what takes it away gives back, and from when on: differences in pairs, over seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from experiments.endless.results import ViewResult
from experiments.gibberish.configuration import (
    SOUND,
    SUSPECTS,
    GibberishExperiment,
    Suspect,
    SuspectView,
)
from experiments.harness.estimates import Estimate, estimate

Verdict = Literal["breaks", "harmless", "open"]


@dataclass(frozen=True, kw_only=True)
class Damage:
    """One view less another, on the same streams: nats per word more, and share recalled less where negative."""

    word_loss: Estimate
    recall: Estimate


@dataclass(frozen=True, kw_only=True)
class SuspectFound:
    """alone: the suspect's own view less the sound one, where old. onset_position: start of the first bucket in which
    the interval of that difference shows damage; NaN for never. in_company: the view with every suspect that shares
    this one's weights, less the same without this one; the leak's is with everything less without the leak. verdict:
    of `alone`."""

    suspect: Suspect
    alone: Damage
    onset_position: float
    in_company: Damage | None
    verdict: Verdict


def old(experiment: GibberishExperiment) -> tuple[int, int]:
    return experiment.old_from, experiment.positions


def damage(result: ViewResult, control: ViewResult, first: int, end: int) -> Damage:
    """Of the positions first <= t < end, which must be edges; stream by stream, then over seeds."""
    return Damage(
        word_loss=estimate(result.paired(control, lambda m: m.word_loss_per_stream(first, end))),
        recall=estimate(result.paired(control, lambda m: m.recall_per_stream(first, end))),
    )


def verdict(experiment: GibberishExperiment, found: Damage) -> Verdict:
    """Breaks where either interval lies wholly in the damage, harmless where neither reaches into it."""
    word_loss, recall = found.word_loss, found.recall
    if word_loss.low > experiment.harm_nats or recall.high < -experiment.harm_recall:
        return "breaks"
    if word_loss.high < experiment.harm_nats and recall.low > -experiment.harm_recall:
        return "harmless"
    return "open"


def onset_position(experiment: GibberishExperiment, result: ViewResult, control: ViewResult) -> float:
    """Start of the first bucket from which on every bucket's mean is damaged, the first of them with its interval."""
    onset = math.nan
    for first, end in pairwise(experiment.position_edges):
        found = damage(result, control, first, end)
        word_loss, recall = found.word_loss, found.recall
        is_damaged = word_loss.mean > experiment.harm_nats or recall.mean < -experiment.harm_recall
        if math.isnan(onset) and verdict(experiment, found) == "breaks":
            onset = float(first)
        elif not is_damaged:
            onset = math.nan
    return onset


def find_suspects(experiment: GibberishExperiment, views: Mapping[str, ViewResult]) -> list[SuspectFound]:
    """Every suspect whose own view, and the sound one, have finished."""
    found = []
    by_suspects = _by_suspects(views)
    for suspect in SUSPECTS:
        own = by_suspects.get(frozenset([suspect]))
        if own is None or SOUND not in views:
            continue
        alone = damage(views[own], views[SOUND], *old(experiment))
        others = frozenset(SUSPECTS) if suspect == "leak" else frozenset(SUSPECTS) - {"leak"}
        company, without = by_suspects.get(others), by_suspects.get(others - {suspect})
        found.append(
            SuspectFound(
                suspect=suspect,
                alone=alone,
                onset_position=onset_position(experiment, views[own], views[SOUND]),
                in_company=damage(views[company], views[without], *old(experiment)) if company and without else None,
                verdict=verdict(experiment, alone),
            )
        )
    return found


def view_of(result: ViewResult) -> SuspectView:
    """The result's view as what it is in this experiment."""
    assert isinstance(result.view, SuspectView)
    return result.view


def _by_suspects(views: Mapping[str, ViewResult]) -> dict[frozenset[Suspect], str]:
    """{what is wrong: view}, of those whose age, where it is cured, is cured as in the sound view."""
    standard = [name for name, result in views.items() if view_of(result).age_cure in (None, "decay")]
    return {frozenset(view_of(views[name]).suspects): name for name in standard}


def cure_ladder(views: Mapping[str, ViewResult]) -> list[tuple[str, str]]:
    """(view, what was mended last): from everything wrong to sound, one cure after the other; finished views alone."""
    steps: list[tuple[frozenset[Suspect], str]] = [
        (frozenset(SUSPECTS), "everything wrong"),
        (frozenset({"wrap", "bf16", "age"}), "no leak in training"),
        (frozenset({"bf16", "age"}), "and first positions pinned"),
        (frozenset({"bf16"}), "and the state decays"),
        (frozenset(), "and kept in FP32"),
    ]
    by_suspects = _by_suspects(views)
    return [(by_suspects[suspects], mended) for suspects, mended in steps if suspects in by_suspects]
