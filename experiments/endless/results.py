"""Finished views of all seeds, and what each does that its control does not."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy

from experiments.endless.arm import ages
from experiments.endless.configuration import EndlessExperiment, View
from experiments.endless.measures import Floats, ViewMeasures
from experiments.endless.trends import half_life
from experiments.harness.estimates import Estimate, estimate
from experiments.harness.finished_views import paired_view_folders
from experiments.harness.study import FinishedArm


@dataclass(frozen=True, kw_only=True)
class ViewResult:
    """One view under every seed, in the seeds' order."""

    view: View
    seeds: tuple[int, ...]
    measures: tuple[ViewMeasures, ...]

    def over_seeds(self, of_seed: Callable[[ViewMeasures], float]) -> Estimate:
        return estimate([of_seed(measures) for measures in self.measures])

    def paired(self, control: ViewResult, per_stream: Callable[[ViewMeasures], Floats]) -> list[float]:
        """This view minus its control, one number a seed: the mean over streams of their differences."""
        assert self.seeds == control.seeds
        differences = [
            per_stream(own) - per_stream(other) for own, other in zip(self.measures, control.measures, strict=True)
        ]
        return [float(numpy.nanmean(each)) if numpy.isfinite(each).any() else math.nan for each in differences]


def read_views(all_views: Sequence[View], finished: Sequence[FinishedArm]) -> dict[str, ViewResult]:
    """Views in the given order, all under the same seeds: those that finished every view that was begun."""
    views = {view.name: view for view in all_views}
    return {
        name: ViewResult(
            view=views[name],
            seeds=tuple(folders),
            measures=tuple(ViewMeasures.load(folder) for folder in folders.values()),
        )
        for name, folders in paired_view_folders(list(views), finished).items()
    }


def findings(experiment: EndlessExperiment, views: Mapping[str, ViewResult]) -> dict[str, dict[str, Estimate]]:
    """{view: {what: estimate}}: the numbers that the table, the CSV and the ledger read."""
    found = {}
    for name, result in views.items():
        own = _of_one_view(experiment, result)
        control = views.get(result.view.control or "")
        if control is not None:
            own |= _against(experiment, result, control)
        found[name] = {what: value for what, value in own.items() if not math.isnan(value.mean)}
    return found


def _of_one_view(experiment: EndlessExperiment, result: ViewResult) -> dict[str, Estimate]:
    young, old = ages(experiment)["young"], ages(experiment)["old"]
    found = {
        "recall_young": result.over_seeds(lambda m: m.recall_between(*young)),
        "recall_old": result.over_seeds(lambda m: m.recall_between(*old)),
        "recall_lost_with_age": result.over_seeds(lambda m: m.recall_between(*young) - m.recall_between(*old)),
        "word_loss_young": result.over_seeds(lambda m: m.streams.word_loss_between(*young)),
        "word_loss_old": result.over_seeds(lambda m: m.streams.word_loss_between(*old)),
        "word_loss_gained_with_age": result.over_seeds(
            # Above the grammar's own nats: which words a span happens to hold then makes no difference.
            lambda m: m.streams.excess_between(*old) - m.streams.excess_between(*young)
        ),
        "norm_growth_exponent": result.over_seeds(ViewMeasures.growth_of_norm),
    }
    for age, (first, _) in ages(experiment).items():
        found[f"inner_norm_{age}"] = result.over_seeds(lambda m, at=first: _probed(m, at, "inner_norm"))
        found[f"effective_step_{age}"] = result.over_seeds(lambda m, at=first: _probed(m, at, "effective_step"))
    for index, change in enumerate(experiment.plan.topic_changes):
        found[f"topic_excess_nats_at_{change}"] = result.over_seeds(lambda m, i=index: _first_excess(m, i))
        # A half-life that is infinite in one seed has no mean: the ledger then reads the share of seeds that recover.
        lives = [_half_life(experiment, m, index) for m in result.measures]
        found[f"topic_half_life_positions_at_{change}"] = estimate([x if math.isfinite(x) else math.nan for x in lives])
        known = [float(math.isfinite(life)) for life in lives if not math.isnan(life)]
        found[f"topic_recovers_share_of_seeds_at_{change}"] = estimate(known)
    return found


def _against(experiment: EndlessExperiment, result: ViewResult, control: ViewResult) -> dict[str, Estimate]:
    """Differences to the control at both ages, and how much more there is of each when old than when young."""
    found = {}
    for what, of_span in (
        ("recall", ViewMeasures.recall_per_stream),
        ("word_loss", ViewMeasures.word_loss_per_stream),
    ):
        by_age = {
            age: result.paired(control, lambda m, of=of_span, s=span: of(m, *s))
            for age, span in ages(experiment).items()
        }
        found |= {f"{what}_against_control_{age}": estimate(values) for age, values in by_age.items()}
        grown = [old - young for young, old in zip(by_age["young"], by_age["old"], strict=True)]
        found[f"{what}_against_control_gained_with_age"] = estimate(grown)
    return found


def _probed(measures: ViewMeasures, position: int, what: str) -> float:
    probe = measures.probe_near(position)
    return math.nan if probe is None else float(vars(probe)[what])


def _first_excess(measures: ViewMeasures, change: int) -> float:
    return math.nan if measures.topics is None else float(measures.topics.excess()[change, 0])


def _half_life(experiment: EndlessExperiment, measures: ViewMeasures, change: int) -> float:
    if measures.topics is None:
        return math.nan
    return half_life(measures.topics.excess()[change], experiment.plan.topic_bin)
