"""One arm of the wraparound experiment: trains its model and runs all of its views, each under an MLflow run."""

from __future__ import annotations

from pathlib import Path

import torch
from moshi.models.lm import LMModel
from torch import Tensor

from backbones.moshi import describe, ttt_layers
from experiments.fact_streams import reading
from experiments.fact_streams.generate import FactStreams, draw_streams
from experiments.fact_streams.measures import StreamMeasures, measure_streams
from experiments.fact_streams.module import FactStreamData, FactStreamModule, stage_spec
from experiments.fact_streams.spec import FactStreamSpec
from experiments.harness import metric_names as names
from experiments.harness.arm_process import is_finished, open_run
from experiments.harness.callbacks import InnerWeightWatch
from experiments.harness.checkpoints import CheckpointFolder, read_checkpoint
from experiments.harness.identity import fingerprint, flattened
from experiments.harness.lightning_run import TrainingRun, train
from experiments.harness.memory import forget_peak, held_bytes
from experiments.harness.outcomes import Outcome
from experiments.harness.stopping import InterruptedRunError
from experiments.harness.study import ArmWork
from experiments.harness.tracking import RunLogger
from experiments.wraparound import viewing
from experiments.wraparound.configuration import MECHANICS, Training, View, WraparoundExperiment
from experiments.wraparound.mechanics_arm import run_mechanics
from experiments.wraparound.models import build_trained, build_viewed
from ttt_core import TTTMonitor

MEASURES_FILE = "measures.npz"
VIEW_DRAW = 2_000_003
"""Second number of the seed of the streams that views are measured on: no training step draws it."""

MONITOR_EVERY_STEPS = 100


def run_wraparound_arm(work: ArmWork) -> None:
    """The mechanics, or one training and then its views."""
    experiment: WraparoundExperiment = work.task.config
    if work.task.arm == MECHANICS:
        run_mechanics(experiment, work)
        return
    training = experiment.training(work.task.arm)
    lm = _train(experiment, training, work)
    streams = view_streams(experiment)
    weights = {name: tensor.cpu() for name, tensor in lm.state_dict().items()}
    for view in experiment.views_of(training.name):
        folder = work.task.folder / "views" / view.name
        if work.task.resumes and is_finished(folder):
            continue
        if work.stop.is_asked:
            raise InterruptedRunError(f"stopped before view {view.name}; the trained model is saved")
        _run_view(experiment, training, view, weights, streams, folder, work)


def view_streams(experiment: WraparoundExperiment) -> FactStreams:
    """The streams all views of a seed are measured on, whatever was trained."""
    plan = experiment.view_plan
    spec = stage_spec(experiment.stream, plan.positions, FactStreamSpec.shortest_distance)
    return draw_streams(spec, plan.streams, plan.positions, (experiment.seed, VIEW_DRAW))


def _train(experiment: WraparoundExperiment, training: Training, work: ArmWork) -> LMModel:
    task, plan = work.task, experiment.stream_training(training)
    bytes_at_start = held_bytes()
    forget_peak()
    lm = build_trained(experiment, training)
    module = FactStreamModule(lm, training.window, experiment.stream, plan)
    own = experiment.of_arm(training.name)
    checkpoints = CheckpointFolder(task.folder / "checkpoints", fingerprint(own), flattened(own))
    monitor = None if training.ttt is None else TTTMonitor(task.folder / "monitor")
    watch = []
    if monitor is not None:
        watch.append(InnerWeightWatch(task.label, ttt_layers(lm), monitor, work.logger, MONITOR_EVERY_STEPS))
    trained = float(sum(parameter.numel() for parameter in module.trained_parameters()))
    work.logger.log_metrics({names.TRAINED_PARAMETERS: trained}, step=0)
    run = TrainingRun(
        label=task.label,
        checkpoints=checkpoints,
        logger=work.logger,
        stop=work.stop,
        seed=experiment.seed,
        checkpoint_every_steps=plan.validate_every_steps,
        bytes_at_start=bytes_at_start,
        progress_line=task.line,
        monitor=monitor,
        callbacks=watch,
    )
    train(module, FactStreamData(experiment.stream, plan, experiment.seed, lambda: module.steps_done), run)
    if monitor is not None:
        work.logger.log_artifact(monitor.plot_evolution(task.folder / "inner_weights.png"), "figures")
    return lm.cpu()


def trained_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of a finished training's model, by the model's own names."""
    stored = read_checkpoint(folder / "checkpoints" / "last.ckpt")["weights"]
    return {name.removeprefix("lm."): tensor for name, tensor in stored.items()}


def _run_view(
    experiment: WraparoundExperiment, training: Training, view: View, weights: dict[str, Tensor],
    streams: FactStreams, folder: Path, work: ArmWork,
) -> None:  # fmt: skip
    """Measures one view under a run of its own, which fails with whatever goes wrong in it."""
    logger = open_run(work.task, view.name, experiment.of_view(view), folder)
    try:
        measures, extra = measure(experiment, training, view, weights, streams)
        measures.save(folder / MEASURES_FILE)
        lm = build_viewed(experiment, training, view.window, view.sinks, weights)
        logger.log_metrics(measures.metrics() | extra | _memory(lm) | {
            names.RECALL_CHANCE: experiment.stream.chance_recall,
        })  # fmt: skip
        logger.log_artifact(folder / MEASURES_FILE)
    except BaseException as error:
        _close(logger, folder, "FAILED", f"{type(error).__name__}: {error}")
        raise
    _close(logger, folder, "FINISHED", "")


def _close(logger: RunLogger, folder: Path, status: str, message: str) -> None:
    if message:
        logger.set_tag("end_message", message)
    logger.close("FINISHED" if status == "FINISHED" else "FAILED")
    Outcome(status="FINISHED" if status == "FINISHED" else "FAILED", run_id=logger.run_id, message=message).write(
        folder
    )


def _memory(lm: LMModel) -> dict[str, float]:
    """Bytes of one stream; of an attention without a bound, what every position adds."""
    memory = describe(lm)
    return {
        names.STATE_BYTES_FIXED: float(memory.bytes_fixed),
        names.STATE_BYTES_PER_POSITION: float(memory.bytes_per_position),
    }


def measure(
    experiment: WraparoundExperiment, training: Training, view: View, weights: dict[str, Tensor], streams: FactStreams
) -> tuple[StreamMeasures, dict[str, float]]:
    """The view's measures, and what only its kind has to tell."""
    lm = build_viewed(experiment, training, view.window, view.sinks, weights)
    plan, said, extra = experiment.view_plan, None, dict[str, float]()
    if view.kind == "batched":
        logits = reading.batched_logits(lm, streams.codes)
    elif view.kind == "streamed":
        logits = reading.streamed_logits(lm, streams.codes)
        extra = {
            names.STREAMED_AGAINST_BATCHED: _relative_difference(reading.batched_logits(lm, streams.codes), logits)
        }
    elif view.kind == "recomputed":
        assert view.window is not None
        streams = streams.rows(0, plan.recomputed_streams)
        logits = viewing.recomputed_logits(lm, streams.codes, view.window, view.has_start_token)
    elif view.kind == "first_positions_hidden":
        assert view.window is not None
        inside = streams.codes[:, :, : view.window]
        logits = viewing.first_positions_hidden_logits(lm, inside, view.hidden, view.window // 2)
    elif view.kind == "ttt_state_reset":
        assert view.reset_every is not None
        logits = viewing.ttt_state_reset_logits(lm, streams.codes, view.reset_every)
    else:
        logits, said = reading.free_running(lm, streams, experiment.seed)
    measures = measure_streams(
        logits, said, streams, experiment.stream, plan.position_edges, plan.distance_edges, plan.near
    )
    return measures, extra


@torch.no_grad()
def _relative_difference(expected: Tensor, found: Tensor) -> float:
    """Largest difference over the largest size of what is expected."""
    return float((found - expected).abs().max() / expected.abs().max())
