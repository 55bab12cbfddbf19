"""Finished arms of the drift experiment, as report, figures and claims read them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy

from experiments.drift.configuration import MODEL, DriftExperiment, StateArm, VectorKind
from experiments.drift.curves import DriftCurves, Floats, first_beyond, growth_exponent
from experiments.drift.metric_names import setting_name
from experiments.drift.model_arm import MEASURES_FILE
from experiments.drift.state_arm import COSTS_FILE, measures_of, read_curves, rows_of, settings
from experiments.fact_streams.measures import StreamMeasures
from experiments.harness.arm_process import is_finished
from experiments.harness.estimates import Estimate, estimate
from experiments.harness.finished_views import view_folders
from experiments.harness.study import FinishedArm


@dataclass(frozen=True, kw_only=True)
class StateResult:
    """One treatment in one setting (arm, kind of vectors, step size).

    curves: one for each seed that finished, of the setting's streams. costs: means over seeds, by their names.
    """

    arm: StateArm
    kind: VectorKind
    step_factor: float
    treatment: str
    curves: tuple[DriftCurves, ...]
    costs: dict[str, float]
    exponent_from: int
    late_share: float

    @property
    def setting(self) -> str:
        """`mlp_b16_speech_lr1`"""
        arm = self.arm
        return f"{arm.inner_model}_b{arm.mini_batch_size:02d}_{setting_name(self.kind, self.step_factor)}"

    @property
    def updates(self) -> Floats:
        return self.curves[0].updates

    def streams(self, measure: str) -> Floats:
        """(streams of all seeds, K) of one measure: the units over which intervals are given."""
        return numpy.concatenate([measures_of(curves)[measure] for curves in self.curves])

    def at(self, measure: str, updates: int) -> Estimate:
        """A measure after so many updates, over streams; NaN where the streams ended before."""
        if updates > self.updates[-1]:
            return estimate([math.nan])
        return estimate(self.streams(measure)[:, self.curves[0].at(updates)].tolist())

    def at_the_end(self, measure: str) -> Estimate:
        return estimate(self.streams(measure)[:, -1].tolist())

    @property
    def exponent(self) -> Estimate:
        """Growth exponent of the state's error, over streams."""
        return self._exponent(self.exponent_from)

    @property
    def late_exponent(self) -> Estimate:
        """The same of the late part alone, without the plateau that rounding the learned start gives."""
        return self._exponent(self.late_share * self.updates[-1])

    def _exponent(self, from_updates: float) -> Estimate:
        return estimate([growth_exponent(self.updates, row, from_updates) for row in self.streams("state_error")])

    def first_gap(self, threshold: float) -> tuple[float, int, int]:
        """Median first update at which a stream's inner loss is beyond its reference's by the threshold (infinite where
        most never are), how many streams ever are, and how many there are."""
        firsts = [first_beyond(self.updates, row, threshold) for row in self.streams("inner_loss_gap")]
        found = [first for first in firsts if not math.isnan(first)]
        median = float(numpy.median([math.inf if math.isnan(first) else first for first in firsts]))
        return median, len(found), len(firsts)


@dataclass(frozen=True, kw_only=True)
class ModelResult:
    """The trained model under one treatment: measures by seed."""

    treatment: str
    against: str
    by_seed: dict[int, StreamMeasures]


def read_states(experiment: DriftExperiment, finished: Sequence[FinishedArm]) -> list[StateResult]:
    """Every setting and treatment of the arms of which at least one seed finished, in the configuration's order."""
    results: list[StateResult] = []
    for arm in experiment.state_arms:
        folders = [each.task.folder for each in finished if each.name == arm.name and is_finished(each.task.folder)]
        if not folders:
            continue
        curves = [read_curves(folder) for folder in folders]
        costs = [json.loads((folder / COSTS_FILE).read_text()) for folder in folders]
        for number, (kind, step_factor) in enumerate(settings(experiment, arm)):
            rows = rows_of(arm, number)
            for treatment in experiment.treatments_of(arm):
                name = treatment.name
                results.append(
                    StateResult(
                        arm=arm,
                        kind=kind,
                        step_factor=step_factor,
                        treatment=name,
                        curves=tuple(found[name].rows(rows) for found in curves),
                        costs=_mean_costs([each[name] for each in costs]),
                        exponent_from=experiment.state.exponent_from,
                        late_share=experiment.state.late_share,
                    )
                )
    return results


def _mean_costs(costs: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: sum(each[name] for each in costs) / len(costs) for name in costs[0]}


def read_models(experiment: DriftExperiment, finished: Sequence[FinishedArm]) -> dict[str, ModelResult]:
    """Treatments of the trained model in the configuration's order, each under the seeds at which it finished."""
    against = {treatment.name: treatment.against for treatment in experiment.model_part.treatments}
    return {
        name: ModelResult(
            treatment=name,
            against=against[name],
            by_seed={seed: StreamMeasures.load(folder / MEASURES_FILE) for seed, folder in folders.items()},
        )
        for name, folders in view_folders(list(against), [arm for arm in finished if arm.name == MODEL]).items()
    }


def difference(models: dict[str, ModelResult], treatment: str, read: Callable[[StreamMeasures], float]) -> Estimate:
    """What `read` gives for the treatment less what it gives for its reference, on the same streams, over seeds."""
    own = models[treatment]
    reference = models[own.against].by_seed if own.against in models else {}
    pairs = [
        read(measures) - read(reference[seed]) for seed, measures in sorted(own.by_seed.items()) if seed in reference
    ]
    return estimate(pairs or [math.nan])


def word_loss_differences(
    models: dict[str, ModelResult], treatment: str, edges: Sequence[int]
) -> list[tuple[tuple[int, int], Estimate]]:
    """(bucket, nats per word above the reference) for every bucket of positions."""
    return [
        (bucket, difference(models, treatment, lambda measures, bucket=bucket: measures.word_loss_between(*bucket)))
        for bucket in pairwise(edges)
    ]


def first_position_over(differences: Sequence[tuple[tuple[int, int], Estimate]], nats: float) -> float:
    """Start of the first bucket whose mean difference is above so many nats; NaN for never."""
    return next((float(bucket[0]) for bucket, found in differences if found.mean > nats), math.nan)
