"""One module through Lightning, from scratch or from its last checkpoint."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer

from experiments.harness.callbacks import MetricWriter, ProgressLines, RunKeeper
from experiments.harness.checkpoints import CheckpointFolder
from experiments.harness.counted_module import CountedModule
from experiments.harness.stopping import DivergedRunError, StopRequest
from experiments.harness.tracking import RunLogger
from ttt_core import TTTMonitor


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """What training runs with besides module and data; nothing of it changes the result.

    label: what messages call the arm. bytes_at_start: held before the model was built. seed: of what is drawn in
    training. starting_weights: a module's `state_dict` to begin with where nothing was saved yet; None: its own.
    """

    label: str
    checkpoints: CheckpointFolder
    logger: RunLogger
    stop: StopRequest
    seed: int
    precision: Any = "32-true"
    checkpoint_every_steps: int
    bytes_at_start: int
    progress_line: int = 0
    monitor: TTTMonitor | None = None
    callbacks: Sequence[Callback] = ()
    starting_weights: dict[str, torch.Tensor] | None = None


def train(module: CountedModule, data: LightningDataModule, run: TrainingRun) -> None:
    """Runs the module to its last step; continues from the last checkpoint where something was saved.

    Raises:
        InterruptedRunError: the stop was asked for; everything is saved.
        DivergedRunError: NaN or infinity; the message names the last good checkpoint.
        CheckpointWriteError: the disk is full; the previous checkpoint is as it was.
        ValueError: a checkpoint of another configuration, or starting weights that do not fit.
    """
    _quieten_lightning()
    keeper = RunKeeper(run.checkpoints, run.logger, run.stop, run.checkpoint_every_steps, run.monitor)
    content = run.checkpoints.load_last()
    if content is not None:
        keeper.restore(content, module)
        print(f"{run.label}: going on after step {module.steps_done} of {module.total_steps}", flush=True)
    else:
        if run.starting_weights is not None:
            module.load_state_dict(run.starting_weights)
        if run.monitor is not None:
            run.monitor.rewind(0)  # rows of a run that died before its first checkpoint
    torch.manual_seed(run.seed)
    trainer = _trainer(
        module,
        run,
        [
            *run.callbacks,
            MetricWriter(run.logger, run.bytes_at_start),
            ProgressLines(run.label, module.total_steps, run.progress_line),
            keeper,
        ],
    )
    try:
        if keeper.validation_is_due:
            trainer.validate(module, datamodule=data, verbose=False)
        if module.steps_done < module.total_steps:
            trainer.fit(module, datamodule=data)
    except DivergedRunError as error:
        raise DivergedRunError(f"{error}; {run.checkpoints.last_good()}") from error


def _trainer(module: CountedModule, run: TrainingRun, callbacks: list[Callback]) -> Trainer:
    """One epoch of Lightning for every validation that is still to come."""
    every = module.validate_every_steps
    return Trainer(
        accelerator="gpu" if torch.cuda.is_available() else "cpu",
        devices=1,
        precision=run.precision,
        max_epochs=max(1, math.ceil(module.total_steps / every) - module.steps_done // every),
        reload_dataloaders_every_n_epochs=1,
        num_sanity_val_steps=0,
        logger=run.logger,
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
