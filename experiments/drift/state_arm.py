"""One state arm: every treatment of one inner model and mini-batch size, on all kinds of vectors and step sizes."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy
import torch

from experiments.drift import metric_names as names
from experiments.drift.autocast_probe import narrow_inner_products
from experiments.drift.configuration import DriftExperiment, StateArm, Treatment, VectorKind
from experiments.drift.curves import DriftCurves, Floats, compare
from experiments.drift.state_streams import Rows, Snapshot, TreatedLayer, snapshots
from experiments.drift.vectors import Mel, draw_vectors
from experiments.harness.stopping import InterruptedRunError
from experiments.harness.study import ArmWork
from ttt_core import TTTConfig

CURVES_FOLDER = "curves"
COSTS_FILE = "costs.json"
STATE_DRAW = 3_000_017
"""Second number of the seed of the vectors."""


def settings(experiment: DriftExperiment, arm: StateArm) -> list[tuple[VectorKind, float]]:
    """(kind, step factor) of every setting, in the order in which they fill an arm's rows, `arm.streams` rows each."""
    return list(product(experiment.state.kinds, arm.step_factors))


def rows_of(arm: StateArm, setting: int) -> range:
    """The rows of the setting with that number."""
    return range(setting * arm.streams, (setting + 1) * arm.streams)


def layer_config(experiment: DriftExperiment, arm: StateArm) -> TTTConfig:
    plan = experiment.state
    return TTTConfig(
        hidden_size=plan.hidden_size, num_heads=plan.num_heads, inner_model=arm.inner_model,
        mini_batch_size=arm.mini_batch_size,
    )  # fmt: skip


def draw_rows(experiment: DriftExperiment, arm: StateArm, utterances: Sequence[Mel]) -> Rows:
    """Streams of every kind, the same under every step size: what differs between settings is then the setting."""
    plan, default = experiment.state, layer_config(experiment, arm).resolved_base_lr
    tokens = plan.tokens + max(plan.probe_tokens, arm.mini_batch_size)
    by_kind = {
        kind: draw_vectors(
            kind, arm.streams, tokens, plan.hidden_size, plan.correlation, utterances,
            (experiment.seed, STATE_DRAW, number),
        )
        for number, kind in enumerate(plan.kinds)
    }  # fmt: skip
    every = settings(experiment, arm)
    return Rows(
        vectors=torch.cat([by_kind[kind] for kind, _ in every]),
        base_lr=torch.tensor([default * factor for _, factor in every]).repeat_interleave(arm.streams),
    )


def run_state_arm(experiment: DriftExperiment, work: ArmWork) -> None:
    """Runs every treatment, references first, and logs and keeps its curves."""
    arm, plan = experiment.state_arm(work.task.arm), experiment.state
    utterances: list[Mel] = work.task.data
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows, config = draw_rows(experiment, arm, utterances), layer_config(experiment, arm)
    rows = dataclasses.replace(rows, base_lr=rows.base_lr.to(device))
    checkpoints = plan.checkpoints(arm.mini_batch_size)
    folder = work.task.folder / CURVES_FOLDER
    folder.mkdir(exist_ok=True)
    references: dict[str, list[Snapshot]] = {}
    costs: dict[str, dict[str, float]] = {}
    for treatment in sorted(experiment.treatments_of(arm), key=lambda each: not each.is_reference):
        if work.stop.is_asked:
            raise InterruptedRunError(f"stopped before treatment {treatment.name}; --resume runs this arm anew")
        treated = TreatedLayer.build(config, treatment, experiment.seed, device)
        started = time.process_time()
        found = list(snapshots(treated, rows, checkpoints, plan.probe_tokens, plan.tokens_per_call))
        costs[treatment.name] = _costs(treated, rows, (time.process_time() - started) / checkpoints[-1])
        if treatment.is_reference:
            references[treatment.name] = found
        curves = compare(checkpoints, found, references[treatment.against])
        path = folder / f"{treatment.name}.npz"
        curves.save(path)
        work.logger.log_artifact(path, CURVES_FOLDER)
        _log(experiment, arm, treatment, curves, work)
        work.logger.log_metrics({f"{name}/{treatment.name}": value for name, value in costs[treatment.name].items()})
    (work.task.folder / COSTS_FILE).write_text(json.dumps(costs, indent=1))


def _costs(treated: TreatedLayer, rows: Rows, seconds_per_update: float) -> dict[str, float]:
    """CPU seconds of an update of all rows, probes included; bytes of a stream; BF16 products in a mini-batch."""
    size = treated.layer.config.mini_batch_size
    return {
        names.SECONDS: seconds_per_update,
        names.STATE_BYTES: float(treated.layer.initial_state(1).nbytes),
        names.NARROW_INNER_PRODUCTS: float(narrow_inner_products(treated, rows.part(0, size))),
    }


def measures_of(curves: DriftCurves) -> dict[str, Floats]:
    """Every measure (R, K) by its name."""
    return {
        names.STATE_ERROR: curves.state_error,
        names.OUTPUT_ERROR: curves.output_error,
        names.INNER_LOSS_GAP: curves.inner_loss_gap,
        names.LOST_SHARE: curves.lost_share,
        names.STEP_ERROR: curves.step_error,
    }


def _log(experiment: DriftExperiment, arm: StateArm, treatment: Treatment, curves: DriftCurves, work: ArmWork) -> None:
    """Curves of the default step size, all kinds averaged, by updates; the end of every setting as single numbers."""
    every = settings(experiment, arm)
    default_rows = [row for number, (_, factor) in enumerate(every) if factor == 1.0 for row in rows_of(arm, number)]
    for measure, values in measures_of(curves).items():
        for index, updates in enumerate(curves.updates):
            mean = float(numpy.mean(values[default_rows, index]))
            if numpy.isfinite(mean):
                work.logger.log_metrics({names.curve_name(measure, treatment.name): mean}, step=int(updates))
        for number, setting in enumerate(every):
            mean = float(numpy.mean(values[list(rows_of(arm, number)), -1]))
            if numpy.isfinite(mean):
                section = f"{measure}_at_the_end_{names.setting_name(*setting)}"
                work.logger.log_metrics({f"{section}/{treatment.name}": mean})


def read_curves(folder: Path) -> dict[str, DriftCurves]:
    """Curves of a finished arm by treatment."""
    return {path.stem: DriftCurves.load(path) for path in sorted((folder / CURVES_FOLDER).glob("*.npz"))}
