"""One arm of the wraparound experiment: trains its model and runs all of its views, each under an MLflow run."""

from __future__ import annotations

from pathlib import Path

from moshi.models.lm import LMModel
from torch import Tensor

from backbones.moshi import describe, ttt_layers
from experiments.fact_streams.module import FactStreamData, FactStreamModule
from experiments.harness import metric_names as names
from experiments.harness.arm_process import is_finished, looked_at
from experiments.harness.callbacks import InnerWeightWatch
from experiments.harness.checkpoints import CheckpointFolder
from experiments.harness.identity import fingerprint, flattened
from experiments.harness.lightning_run import TrainingRun, train
from experiments.harness.memory import forget_peak, held_bytes
from experiments.harness.stopping import InterruptedRunError
from experiments.harness.study import ArmWork
from experiments.wraparound.configuration import MECHANICS, Training, View, WraparoundExperiment
from experiments.wraparound.measuring import ViewStreams, device, measure_view, view_streams
from experiments.wraparound.mechanics_arm import run_mechanics
from experiments.wraparound.models import build_trained, build_viewed
from ttt_core import TTTMonitor

LONG_FILE = "long_streams.npz"
ONSET_FILE = "onset_streams.npz"
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


def _train(experiment: WraparoundExperiment, training: Training, work: ArmWork) -> LMModel:
    task, plan = work.task, experiment.stream_training(training)
    bytes_at_start = held_bytes()
    forget_peak()
    lm = build_trained(experiment, training)
    module = FactStreamModule(lm, experiment.stream, plan)
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


def _run_view(
    experiment: WraparoundExperiment, training: Training, view: View, weights: dict[str, Tensor],
    streams: ViewStreams, folder: Path, work: ArmWork,
) -> None:  # fmt: skip
    """Measures one view under a run of its own."""
    with looked_at(work.task, view.name, experiment.of_view(view), folder) as logger:
        lm = build_viewed(experiment, training, view.window, view.sinks, weights).to(device())
        found = measure_view(experiment, view, lm, streams)
        found.onset.save(folder / ONSET_FILE)
        written = [folder / ONSET_FILE]
        if found.long is not None:
            found.long.save(folder / LONG_FILE)
            written.append(folder / LONG_FILE)
        parameters = float(sum(parameter.numel() for parameter in lm.parameters()))
        chance = experiment.stream.chance_recall
        fixed = {names.RECALL_CHANCE: chance, names.TRAINED_PARAMETERS: parameters}
        logger.log_metrics(found.metrics() | _memory(lm) | fixed)
        for path in written:
            logger.log_artifact(path)


def _memory(lm: LMModel) -> dict[str, float]:
    """Bytes of one stream; of an attention without a bound, what every position adds."""
    memory = describe(lm)
    return {
        names.STATE_BYTES_FIXED: float(memory.bytes_fixed),
        names.STATE_BYTES_PER_POSITION: float(memory.bytes_per_position),
    }
