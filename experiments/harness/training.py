"""Trains and measures one arm, from scratch or from its last checkpoint, and leaves its artifacts."""

from __future__ import annotations

import logging
import math
import warnings
from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer

from backbones.mounting import ttt_layers
from experiments.harness import metric_names as names
from experiments.harness.arms import build_model, memory_metrics, memory_of
from experiments.harness.artifacts import save_artifacts
from experiments.harness.callbacks import InnerWeightWatch, MetricWriter, ProgressLines, RunKeeper
from experiments.harness.checkpoints import CheckpointFolder
from experiments.harness.configuration import Arm, ExperimentConfig, fingerprint, flattened
from experiments.harness.data_module import ConversationDataModule, ConversationLoader
from experiments.harness.memory import forget_peak, held_bytes
from experiments.harness.module import SpokenConversationModule
from experiments.harness.prepared_data import ExperimentData
from experiments.harness.stopping import DivergedRunError, StopRequest
from experiments.harness.tracking import RunLogger
from ttt_core import TTTMonitor


def train_arm(
    config: ExperimentConfig,
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
        InterruptedRunError: `stop` was asked for; everything is saved.
        DivergedRunError: NaN or infinity; the message names the last good checkpoint.
        CheckpointWriteError: the disk is full; the previous checkpoint is as it was.
        ValueError: a checkpoint of another configuration, or data or weights that do not fit.
    """
    _quieten_lightning()
    bytes_at_start = held_bytes()
    forget_peak()
    model = build_model(config, arm, weights)
    module = SpokenConversationModule(model, config, arm.upper_layers)
    own = config.of_arm(arm.name)
    checkpoints = CheckpointFolder(folder / "checkpoints", fingerprint(own), flattened(own))
    loader = ConversationLoader(model, max(row.ttt.mini_batch_size if row.ttt else 1 for row in config.arms))
    data_module = ConversationDataModule(config, data, loader, next_step=lambda: module.steps_done)
    monitor = TTTMonitor(folder / "monitor") if arm.ttt is not None else None
    keeper = RunKeeper(checkpoints, logger, stop, config.evaluation.checkpoint_every_steps, monitor)
    content = checkpoints.load_last()
    if content is not None:
        keeper.restore(content, module)
        print(f"{arm.name}: going on after step {module.steps_done} of {module.total_steps}", flush=True)
    elif monitor is not None:
        monitor.rewind(0)  # rows of a run that died before its first checkpoint
    torch.manual_seed(config.seed)
    watch = [] if monitor is None else [_watch(arm, module, monitor, logger, config)]
    trainer = _trainer(
        config,
        module.steps_done,
        logger,
        [
            *watch,
            MetricWriter(logger, bytes_at_start),
            ProgressLines(arm.name, module.total_steps, progress_line),
            keeper,
        ],
    )
    trained = float(sum(p.numel() for p in module.parameters() if p.requires_grad))
    logger.log_metrics(
        memory_metrics(memory_of(config, arm), config) | {names.TRAINED_PARAMETERS: trained}, step=module.steps_done
    )
    try:
        if keeper.validation_is_due:
            trainer.validate(module, datamodule=data_module, verbose=False)
        if module.steps_done < module.total_steps:
            trainer.fit(module, datamodule=data_module)
    except DivergedRunError as error:
        raise DivergedRunError(f"{error}; {checkpoints.last_good()}") from error
    save_artifacts(config, arm, module, data, loader, logger, folder, monitor)
    return module


def _watch(
    arm: Arm, module: SpokenConversationModule, monitor: TTTMonitor, logger: RunLogger, config: ExperimentConfig
) -> InnerWeightWatch:
    layers = ttt_layers(module.model.llm)
    return InnerWeightWatch(arm.name, layers, monitor, logger, config.evaluation.monitor_every_steps)


def _trainer(config: ExperimentConfig, steps_done: int, logger: RunLogger, callbacks: list[Callback]) -> Trainer:
    """One epoch of Lightning for every validation that is still to come."""
    every = config.evaluation.validate_every_steps
    return Trainer(
        accelerator="gpu" if torch.cuda.is_available() else "cpu",
        devices=1,
        precision=config.training.precision,
        max_epochs=max(1, math.ceil(config.data.steps / every) - steps_done // every),
        reload_dataloaders_every_n_epochs=1,
        num_sanity_val_steps=0,
        logger=logger,
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        inference_mode=False,
        deterministic="warn",
    )


def _quieten_lightning() -> None:
    """Lightning's start-up lines and its advice that does not apply here."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",  # batches are made of cached tensors
        ".*`IterableDataset` has `__len__` defined.*",  # one process reads it
        ".*overridden `transfer_batch_to_device`.*",
        ".*smaller than the logging interval.*",  # the harness logs by itself
        ".*treespec, LeafSpec.*",
        ".*eval mode at the start of training.*",
    ):
        warnings.filterwarnings("ignore", message=message)
