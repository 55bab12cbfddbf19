"""Finished arms of all seeds, and what each view is worth: estimates over seeds, counts over all streams."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from experiments.harness.estimates import CONFIDENCE, Estimate, ShareOfSeeds, estimate, share_of_seeds
from experiments.harness.study import FinishedArm
from experiments.quality.arm import EVALUATION_FILE
from experiments.quality.configuration import DetectorExperiment
from experiments.quality.damage import SUBTLE
from experiments.quality.evaluation import Evaluation

GROUPS = ("gross", "subtle")


@dataclass(frozen=True, kw_only=True)
class Rate:
    """Events over hours, with the exact 95 % interval of a Poisson rate."""

    events: int
    hours: float
    low: float
    high: float

    @property
    def per_hour(self) -> float:
        return self.events / self.hours

    def __str__(self) -> str:
        return f"{self.per_hour:.2f} [{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True, kw_only=True)
class KindFindings:
    """One kind of damage over all seeds.

    auc: mean over seeds, its interval cut at 0 and 1. onsets: share of streams whose onset was named well enough, an
    exact interval over streams. found_share: of streams with any alarm. delay_s: median, infinite where most streams
    have none. measure: that gave it away most often.
    """

    auc: Estimate
    onsets: ShareOfSeeds
    found_share: float
    delay_s: float
    measure: str

    @property
    def onset_share(self) -> float:
        return self.onsets.count / self.onsets.seeds


@dataclass(frozen=True, kw_only=True)
class ViewFindings:
    """One view over all seeds, `evaluations` in their order."""

    evaluations: tuple[Evaluation, ...]
    false_alarms: Rate
    kinds: dict[str, KindFindings]


def group_of(kind: str) -> str:
    """ "gross" or "subtle"."""
    return "subtle" if kind in SUBTLE else "gross"


def poisson_rate(events: int, hours: float) -> Rate:
    """ValueError without any hours."""
    if not hours > 0:
        raise ValueError(f"a rate takes hours to count in, got {hours:g}")
    tail = (1 - CONFIDENCE) / 2
    low = float(stats.chi2.ppf(tail, 2 * events)) / 2 if events else 0.0
    return Rate(
        events=events, hours=hours, low=low / hours, high=float(stats.chi2.isf(tail, 2 * events + 2)) / 2 / hours
    )


def read_views(experiment: DetectorExperiment, finished: Sequence[FinishedArm]) -> dict[str, ViewFindings]:
    """Views in the configuration's order, each over the seeds in which it finished."""
    found: dict[str, list[Evaluation]] = {name: [] for name in experiment.arm_names}
    for arm in finished:
        if arm.outcome is not None and arm.outcome.status == "FINISHED":
            found[arm.name].append(Evaluation.load(arm.task.folder / EVALUATION_FILE))
    return {name: findings(own, experiment.tolerated_onset_s) for name, own in found.items() if own}


def findings(evaluations: Sequence[Evaluation], tolerated_onset_s: float) -> ViewFindings:
    """Of one view under several seeds."""
    hours, events = sum(each.clean_hours for each in evaluations), sum(each.false_alarms for each in evaluations)
    return ViewFindings(
        evaluations=tuple(evaluations),
        false_alarms=poisson_rate(events, hours),
        kinds={kind: _of_kind(evaluations, kind, tolerated_onset_s) for kind in evaluations[0].kinds},
    )


def _of_kind(evaluations: Sequence[Evaluation], kind: str, tolerated_onset_s: float) -> KindFindings:
    own = [each.kinds[kind] for each in evaluations]
    auc = estimate([each.auc for each in own])
    onsets = [onset for each in own for onset in each.onsets]
    measures = Counter(onset.measure for onset in onsets if onset.measure)
    return KindFindings(
        auc=Estimate(mean=auc.mean, low=max(0.0, auc.low), high=min(1.0, auc.high), seeds=auc.seeds)
        if not math.isnan(auc.low)
        else auc,
        onsets=share_of_seeds([found for each in own for found in each.found_within(tolerated_onset_s)]),
        found_share=float(np.mean([math.isfinite(onset.alarm_s) for onset in onsets])),
        delay_s=float(np.median([onset.delay_s for onset in onsets])),
        measure=measures.most_common(1)[0][0] if measures else "",
    )


def parent_metrics(views: Mapping[str, ViewFindings]) -> dict[str, float]:
    """`detector_VIEW/...` with `_low` and `_high`. The lowest of a group of kinds is that of the worst value, and of
    the worst end of an interval, whichever kinds these are."""
    metrics: dict[str, float] = {}
    for name, view in views.items():
        rate, start = view.false_alarms, f"detector_{name}"
        metrics |= _with_ends(f"{start}/false_alarms_per_hour", rate.per_hour, rate.low, rate.high)
        for kind, own in view.kinds.items():
            metrics |= _with_ends(f"{start}_{kind}/auc", own.auc.mean, own.auc.low, own.auc.high)
            metrics |= _with_ends(f"{start}_{kind}/share_of_onsets", own.onset_share, own.onsets.low, own.onsets.high)
        for group in GROUPS:
            members = [own for kind, own in view.kinds.items() if group_of(kind) == group]
            aucs = [(own.auc.mean, own.auc.low, own.auc.high) for own in members]
            shares = [(own.onset_share, own.onsets.low, own.onsets.high) for own in members]
            metrics |= _with_ends(f"{start}/lowest_auc_{group}", *map(min, zip(*aucs, strict=True)))
            metrics |= _with_ends(f"{start}/lowest_share_of_onsets_{group}", *map(min, zip(*shares, strict=True)))
    return metrics


def _with_ends(name: str, value: float, low: float, high: float) -> dict[str, float]:
    """Without ends where there is one seed, and so no interval."""
    return {name: value} if math.isnan(low) else {name: value, f"{name}_low": low, f"{name}_high": high}
