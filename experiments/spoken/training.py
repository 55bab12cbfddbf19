"""Trains and measures one arm on spoken conversations, and leaves its artifacts."""

from __future__ import annotations

from pathlib import Path

from backbones.mounting import ttt_layers
from experiments.harness import metric_names as names
from experiments.harness.callbacks import InnerWeightWatch
from experiments.harness.checkpoints import CheckpointFolder
from experiments.harness.identity import fingerprint, flattened
from experiments.harness.lightning_run import TrainingRun, train
from experiments.harness.memory import forget_peak, held_bytes
from experiments.harness.stopping import StopRequest
from experiments.harness.tracking import RunLogger
from experiments.spoken.arms import build_model, memory_metrics, memory_of
from experiments.spoken.artifacts import save_artifacts
from experiments.spoken.configuration import Arm, SpokenExperiment
from experiments.spoken.data_module import ConversationDataModule, ConversationLoader
from experiments.spoken.module import SpokenConversationModule
from experiments.spoken.prepared_data import ExperimentData
from ttt_core import TTTMonitor


def train_arm(
    config: SpokenExperiment,
    arm: Arm,
    data: ExperimentData,
    logger: RunLogger,
    stop: StopRequest,
    folder: Path,
    weights: Path | None = None,
    progress_line: int = 0,
) -> SpokenConversationModule:
    """Runs the arm to its end; continues from `folder`/checkpoints where something was saved.

    Raises:
        InterruptedRunError, DivergedRunError, CheckpointWriteError: see `harness.lightning_run.train`.
        ValueError: a checkpoint of another configuration, or data or weights that do not fit.
    """
    bytes_at_start = held_bytes()
    forget_peak()
    model = build_model(config, arm, weights)
    module = SpokenConversationModule(model, config, arm.upper_layers)
    own = config.of_arm(arm.name)
    loader = ConversationLoader(model, max(row.ttt.mini_batch_size if row.ttt else 1 for row in config.arms))
    data_module = ConversationDataModule(config, data, loader, next_step=lambda: module.steps_done)
    monitor = TTTMonitor(folder / "monitor") if arm.ttt is not None else None
    watch = []
    if monitor is not None:
        every = config.evaluation.monitor_every_steps
        watch.append(InnerWeightWatch(arm.name, ttt_layers(model.llm), monitor, logger, every))
    trained = float(sum(parameter.numel() for parameter in module.trained_parameters()))
    logger.log_metrics(memory_metrics(memory_of(config, arm), config) | {names.TRAINED_PARAMETERS: trained}, step=0)
    run = TrainingRun(
        label=arm.name,
        checkpoints=CheckpointFolder(folder / "checkpoints", fingerprint(own), flattened(own)),
        logger=logger,
        stop=stop,
        seed=config.seed,
        precision=config.training.precision,
        checkpoint_every_steps=config.evaluation.checkpoint_every_steps,
        bytes_at_start=bytes_at_start,
        progress_line=progress_line,
        monitor=monitor,
        callbacks=watch,
    )
    train(module, data_module, run)
    save_artifacts(config, arm, module, data, loader, logger, folder, monitor)
    return module
