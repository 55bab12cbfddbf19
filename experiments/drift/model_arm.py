"""The model arm: trains in FP32, then runs the same weights over long streams under every treatment, a run each."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import Tensor

from backbones.moshi import ttt_layers
from experiments.drift.configuration import MODEL, DriftExperiment, ModelPart, Treatment
from experiments.drift.model_streams import build_model, build_treated, streamed_logits
from experiments.fact_streams.generate import FactStreams, draw_streams
from experiments.fact_streams.measures import StreamMeasures, measure_streams
from experiments.fact_streams.module import FactStreamData, FactStreamModule, stage_spec
from experiments.fact_streams.spec import FactStreamSpec
from experiments.harness import metric_names as harness_names
from experiments.harness.arm_process import is_finished, looked_at
from experiments.harness.callbacks import InnerWeightWatch
from experiments.harness.checkpoints import CheckpointFolder
from experiments.harness.identity import fingerprint, flattened
from experiments.harness.lightning_run import TrainingRun, train
from experiments.harness.memory import forget_peak, held_bytes
from experiments.harness.stopping import InterruptedRunError
from experiments.harness.study import ArmWork
from ttt_core import TTTMonitor

MEASURES_FILE = "measures.npz"
VIEWS_FOLDER = "views"
LONG_STREAM_DRAW = 3_000_029
"""Second number of the seed of the long streams: no training step draws it."""

MONITOR_EVERY_STEPS = 100


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
    task, part = work.task, experiment.model_part
    bytes_at_start = held_bytes()
    forget_peak()
    lm = build_model(part, experiment.seed)
    module = FactStreamModule(lm, part.stream, part.training)
    own = experiment.of_arm(MODEL)
    monitor = TTTMonitor(task.folder / "monitor")
    run = TrainingRun(
        label=task.label,
        checkpoints=CheckpointFolder(task.folder / "checkpoints", fingerprint(own), flattened(own)),
        logger=work.logger,
        stop=work.stop,
        seed=experiment.seed,
        checkpoint_every_steps=part.training.validate_every_steps,
        bytes_at_start=bytes_at_start,
        progress_line=task.line,
        monitor=monitor,
        callbacks=[InnerWeightWatch(task.label, ttt_layers(lm), monitor, work.logger, MONITOR_EVERY_STEPS)],
    )
    train(module, FactStreamData(part.stream, part.training, experiment.seed, lambda: module.steps_done), run)
    work.logger.log_artifact(monitor.plot_evolution(task.folder / "inner_weights.png"), "figures")
    return {name: tensor.cpu() for name, tensor in lm.cpu().state_dict().items()}


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
    lm = build_treated(part, seed, treatment, weights).to("cuda" if torch.cuda.is_available() else "cpu")
    logits = streamed_logits(lm, streams.codes, part.tokens_per_call, treatment)
    return measure_streams(logits, None, streams, part.stream, part.position_edges, part.distance_edges, part.near)
