"""The model arm: trains in FP32, then runs the same weights over long streams under every treatment, a run each."""

from __future__ import annotations

import time
from pathlib import Path

from torch import Tensor

from experiments.drift.configuration import MODEL, DriftExperiment, ModelPart, Treatment
from experiments.drift.model_streams import build_model, build_treated, streamed_logits
from experiments.fact_streams.generate import FactStreams, draw_streams
from experiments.fact_streams.measures import StreamMeasures, measure_streams
from experiments.fact_streams.module import FactStreamData, FactStreamModule, stage_spec
from experiments.fact_streams.spec import FactStreamSpec
from experiments.fact_streams.training import cpu_weights, train_on_fact_streams
from experiments.harness import metric_names as harness_names
from experiments.harness.arm_process import is_finished, looked_at
from experiments.harness.finished_views import VIEWS_FOLDER
from experiments.harness.memory import device, start_measuring
from experiments.harness.stopping import InterruptedRunError
from experiments.harness.study import ArmWork

MEASURES_FILE = "measures.npz"
LONG_STREAM_DRAW = 3_000_029
"""Second number of the seed of the long streams: no training step draws it."""


def run_model_arm(experiment: DriftExperiment, work: ArmWork) -> None:
    """One training, then a view of it under every treatment."""
    weights = _train(experiment, work)
    part = experiment.model_part
    streams = long_streams(part, experiment.seed)
    for treatment in part.treatments:
        folder = work.task.folder / VIEWS_FOLDER / treatment.name
        if work.task.resumes and is_finished(folder):
            continue
        if work.stop.is_asked:
            raise InterruptedRunError(f"stopped before treatment {treatment.name}; the trained model is saved")
        _run_view(experiment, treatment, weights, streams, folder, work)


def long_streams(part: ModelPart, seed: int) -> FactStreams:
    """The streams that every treatment of a seed reads; distances as far as the last bucket's edge."""
    spec = stage_spec(part.stream, part.distance_edges[-1], FactStreamSpec.shortest_distance)
    return draw_streams(spec, part.streams, part.positions, (seed, LONG_STREAM_DRAW))


def _train(experiment: DriftExperiment, work: ArmWork) -> dict[str, Tensor]:
    part, bytes_at_start = experiment.model_part, start_measuring()
    lm = build_model(part, experiment.seed)
    module = FactStreamModule(lm, part.stream, part.training)
    data = FactStreamData(part.stream, part.training, experiment.seed, lambda: module.steps_done)
    train_on_fact_streams(module, data, experiment.of_arm(MODEL), work, bytes_at_start)
    return cpu_weights(lm)


def _run_view(
    experiment: DriftExperiment, treatment: Treatment, weights: dict[str, Tensor], streams: FactStreams, folder: Path,
    work: ArmWork,
) -> None:  # fmt: skip
    """Measures one treatment under a run of its own."""
    part = experiment.model_part
    with looked_at(work.task, treatment.name, experiment.of_view(treatment), folder) as logger:
        started = time.process_time()
        measures = measure_treatment(part, experiment.seed, treatment, weights, streams)
        measures.save(folder / MEASURES_FILE)
        logger.log_metrics(
            measures.metrics()
            | {
                harness_names.RECALL_CHANCE: part.stream.chance_recall,
                "speed/seconds_per_1000_positions": 1000 * (time.process_time() - started) / part.positions,
            }
        )
        logger.log_artifact(folder / MEASURES_FILE)


def measure_treatment(
    part: ModelPart, seed: int, treatment: Treatment, weights: dict[str, Tensor], streams: FactStreams
) -> StreamMeasures:
    """Measures of the trained weights over the long streams under one treatment."""
    lm = build_treated(part, seed, treatment, weights).to(device())
    logits = streamed_logits(lm, streams.codes, part.tokens_per_call, treatment)
    return measure_streams(logits, None, streams, part.stream, part.position_edges, part.distance_edges, part.near)
