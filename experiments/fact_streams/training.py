"""Trains one arm's model on fact streams, watched by the monitor where it has TTT."""

from __future__ import annotations

from typing import Any

from moshi.models.lm import LMModel
from torch import Tensor

from backbones.moshi import ttt_layers
from experiments.fact_streams.module import FactStreamData, FactStreamModule
from experiments.harness import metric_names as names
from experiments.harness.callbacks import InnerWeightWatch
from experiments.harness.checkpoints import CheckpointFolder
from experiments.harness.identity import fingerprint, flattened
from experiments.harness.lightning_run import TrainingRun, train
from experiments.harness.study import ArmWork
from ttt_core import TTTMonitor

MONITOR_EVERY_STEPS = 100


def train_on_fact_streams(
    module: FactStreamModule, data: FactStreamData, own: dict[str, Any], work: ArmWork, bytes_at_start: int,
    monitor: TTTMonitor | None = None, monitor_every_steps: int = MONITOR_EVERY_STEPS,
) -> None:  # fmt: skip
    """Trains the module to its end, from its last checkpoint where there is one.

    own: what the arm's result depends on; a checkpoint of anything else is refused. bytes_at_start: held before the
    model was built. monitor: for callers who read it afterwards. Its rows and picture are logged however training ends.
    """
    task, layers = work.task, ttt_layers(module.lm)
    watch = []
    if layers:
        monitor = monitor or TTTMonitor(task.folder / "monitor")
        watch.append(InnerWeightWatch(task.label, layers, monitor, work.logger, monitor_every_steps))
    trained = float(sum(parameter.numel() for parameter in module.trained_parameters()))
    work.logger.log_metrics({names.TRAINED_PARAMETERS: trained}, step=0)
    run = TrainingRun(
        label=task.label,
        checkpoints=CheckpointFolder(task.folder / "checkpoints", fingerprint(own), flattened(own)),
        logger=work.logger,
        stop=work.stop,
        seed=task.config.seed,
        checkpoint_every_steps=module.training_plan.validate_every_steps,
        bytes_at_start=bytes_at_start,
        progress_line=task.line,
        monitor=monitor,
        callbacks=watch,
    )
    try:
        train(module, data, run)
    finally:
        if monitor is not None:
            work.logger.log_artifact(monitor.csv_path)
            work.logger.log_artifact(monitor.plot_evolution(task.folder / "inner_weights.png"), "figures")


def cpu_weights(lm: LMModel) -> dict[str, Tensor]:
    """The model's weights on the CPU, by name."""
    return {name: tensor.cpu() for name, tensor in lm.state_dict().items()}
