"""Trains and measures one arm on spoken conversations, and leaves its artifacts."""

from __future__ import annotations

from pathlib import Path

from experiments.harness import metric_names as names
from experiments.harness.callbacks import InnerWeightWatch
from experiments.harness.checkpoints import CheckpointFolder
from experiments.harness.identity import fingerprint, flattened
from experiments.harness.lightning_run import TrainingRun, train
from experiments.harness.memory import forget_peak, held_bytes
from experiments.harness.stopping import StopRequest
from experiments.harness.tracking import RunLogger
from experiments.spoken.arms import memory_metrics
from experiments.spoken.artifacts import save_artifacts, save_monitor
from experiments.spoken.backbone import spoken_backbone
from experiments.spoken.configuration import Arm, SpokenExperiment
from experiments.spoken.data_module import ConversationDataModule, RecordedDataModule
from experiments.spoken.module import SpokenModule
from experiments.spoken.prepared_data import ExperimentData
from experiments.spoken.recorded_plan import RecordedPlan
from experiments.spoken.starting import LAST_CHECKPOINT, start_from
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
    start_folder: Path | None = None,
    label: str | None = None,
) -> SpokenModule:
    """Runs the arm to its end; continues from `folder`/checkpoints where something was saved.

    start_folder: of the arm whose trained weights this one begins with. label: what messages call the arm.

    Raises:
        InterruptedRunError, DivergedRunError, CheckpointWriteError: see `harness.lightning_run.train`.
        ValueError: a checkpoint of another configuration, or data or weights that do not fit.
    """
    bytes_at_start = held_bytes()
    forget_peak()
    backbone = spoken_backbone(config.backbone)
    model = backbone.build_model(config, arm, weights)
    module = backbone.module(model, config, arm)
    if start_folder is not None and not (folder / LAST_CHECKPOINT).exists():
        start_from(module, start_folder)
    module.group_parameters()
    own = config.of_arm(arm.name)
    loader = backbone.loader(model, config)
    memory = backbone.memory_of(config, arm)
    kind = RecordedDataModule if isinstance(config.data, RecordedPlan) else ConversationDataModule
    data_module = kind(config, data, loader, next_step=lambda: module.steps_done)
    monitor = TTTMonitor(folder / "monitor") if arm.ttt is not None else None
    watch = []
    if monitor is not None:
        every = config.evaluation.monitor_every_steps
        watch.append(InnerWeightWatch(arm.name, backbone.ttt_layers(model), monitor, logger, every))
    trained = float(sum(parameter.numel() for parameter in module.trained_parameters()))
    at_the_end = memory_metrics(memory, loader.longest(data.validation))
    logger.log_metrics(at_the_end | {names.TRAINED_PARAMETERS: trained}, step=0)
    run = TrainingRun(
        label=label or arm.name,
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
    save_artifacts(config, arm, module.model.eval(), data.validation, loader, logger, folder)
    if monitor is not None:
        save_monitor(monitor, logger, folder)
    return module
