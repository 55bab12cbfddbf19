"""One arm of the wraparound experiment: trains its model and runs all of its views, each under an MLflow run."""

from __future__ import annotations

from pathlib import Path

from moshi.models.lm import LMModel
from torch import Tensor

from backbones.moshi import describe
from experiments.fact_streams.module import FactStreamData, FactStreamModule
from experiments.fact_streams.training import cpu_weights, train_on_fact_streams
from experiments.harness import metric_names as names
from experiments.harness.arm_process import is_finished, looked_at
from experiments.harness.finished_views import VIEWS_FOLDER
from experiments.harness.memory import device, start_measuring
from experiments.harness.stopping import InterruptedRunError
from experiments.harness.study import ArmWork
from experiments.wraparound.configuration import MECHANICS, Training, View, WraparoundExperiment
from experiments.wraparound.measuring import ViewStreams, measure_view, view_streams
from experiments.wraparound.mechanics_arm import run_mechanics
from experiments.wraparound.models import build_trained, build_viewed

LONG_FILE = "long_streams.npz"
ONSET_FILE = "onset_streams.npz"


def run_wraparound_arm(work: ArmWork) -> None:
    """The mechanics, or one training and then its views."""
    experiment: WraparoundExperiment = work.task.config
    if work.task.arm == MECHANICS:
        run_mechanics(experiment, work)
        return
    training = experiment.training(work.task.arm)
    lm = _train(experiment, training, work)
    streams = view_streams(experiment)
    weights = cpu_weights(lm)
    for view in experiment.views_of(training.name):
        folder = work.task.folder / VIEWS_FOLDER / view.name
        if work.task.resumes and is_finished(folder):
            continue
        if work.stop.is_asked:
            raise InterruptedRunError(f"stopped before view {view.name}; the trained model is saved")
        _run_view(experiment, training, view, weights, streams, folder, work)


def _train(experiment: WraparoundExperiment, training: Training, work: ArmWork) -> LMModel:
    plan, bytes_at_start = experiment.stream_training(training), start_measuring()
    lm = build_trained(experiment, training)
    module = FactStreamModule(lm, experiment.stream, plan)
    data = FactStreamData(experiment.stream, plan, experiment.seed, lambda: module.steps_done)
    train_on_fact_streams(module, data, experiment.of_arm(training.name), work, bytes_at_start)
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
