"""What happens around the steps: checkpoints and interruption, the monitor of the inner weights, logging, progress."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn
from tqdm import tqdm

from experiments.harness import metric_names as names
from experiments.harness.checkpoints import (
    CheckpointFolder,
    load_weights_strictly,
    random_states,
    restore_random_states,
)
from experiments.harness.counted_module import CountedModule
from experiments.harness.memory import peak_bytes
from experiments.harness.stopping import DivergedRunError, InterruptedRunError, StopRequest
from experiments.harness.tracking import RunLogger
from ttt_core import TTTLayer, TTTMonitor, TTTState

PROGRESS_LINES = 10


def _ours(module: LightningModule) -> CountedModule:
    """What Lightning hands to every hook, as the only kind of module that is trained here."""
    assert isinstance(module, CountedModule)
    return module


class RunKeeper(Callback):
    """Saves the run so that it can go on exactly where it stopped, and stops it when asked to.

    A checkpoint holds everything the remaining steps depend on. Validation happens between steps and draws no random
    numbers; whether it was still due is part of the checkpoint, so that a run stopped in the middle of it repeats it.
    """

    def __init__(
        self,
        checkpoints: CheckpointFolder,
        logger: RunLogger,
        stop: StopRequest,
        every_steps: int,
        monitor: TTTMonitor | None = None,
    ) -> None:
        self.checkpoints = checkpoints
        self.monitor = monitor
        self.logger = logger
        self.stop = stop
        self.every_steps = every_steps
        self.best_loss = float("inf")
        self.validation_is_due = True
        self._restored: Mapping[str, Any] | None = None

    def restore(self, content: Mapping[str, Any], module: CountedModule) -> None:
        """Puts the weights and the counters back; the optimiser and the random generators follow when training starts.

        Raises:
            ValueError: the weights do not fit the model.
        """
        load_weights_strictly(module, content["weights"], self.checkpoints.last)
        module.steps_done = content["step"]
        module.seconds_timed, module.positions_timed = content["seconds_timed"], content["positions_timed"]
        module.go_on_from(content.get("carried"))  # checkpoints from before states were carried have no such entry
        self.best_loss = content["best_loss"]
        self.validation_is_due = content["validation_is_due"]
        if self.monitor is not None:
            self.monitor.rewind(module.steps_done, content["monitor"])
        self._restored = content

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._restored is not None:
            trainer.optimizers[0].load_state_dict(self._restored["optimizer"])
            restore_random_states(self._restored["random_states"])
            self._restored = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        module = _ours(pl_module)
        self.validation_is_due = module.validates_after(module.steps_done)
        if self.stop.is_asked:
            self.save(trainer, module)
            raise InterruptedRunError(f"stopped after step {module.steps_done} of {module.total_steps}, saved")
        if module.steps_done % self.every_steps == 0:
            self.save(trainer, module)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        module = _ours(pl_module)
        if self.stop.is_asked:
            self.save(trainer, module)
            raise InterruptedRunError(f"stopped while validating after step {module.steps_done}, saved")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module = _ours(pl_module)
        self.validation_is_due = False
        loss = module.last_validation[names.VALIDATION_LOSS]
        is_best = loss < self.best_loss
        self.best_loss = min(loss, self.best_loss)
        if is_best or module.steps_done == module.total_steps:
            self.save(trainer, module, is_best=is_best)

    def save(self, trainer: Trainer, module: CountedModule, is_best: bool = False) -> None:
        """Writes the checkpoint of now. Before the first step there is nothing that a new run would not have."""
        if trainer.state.fn == TrainerFn.FITTING:
            optimizer, generators = trainer.optimizers[0].state_dict(), random_states()
        elif self._restored is not None:
            optimizer, generators = self._restored["optimizer"], self._restored["random_states"]
        else:
            assert module.steps_done == 0
            return
        content = {
            "weights": module.state_dict(),
            "optimizer": optimizer,
            "random_states": generators,
            "seconds_timed": module.seconds_timed,
            "positions_timed": module.positions_timed,
            "best_loss": self.best_loss,
            "validation_is_due": self.validation_is_due,
            "carried": module.carried(),
            "monitor": None if self.monitor is None else self.monitor.state_dict(),
        }
        self.logger.write_pending()
        self.checkpoints.save(content, step=module.steps_done, is_best=is_best)


class MetricWriter(Callback):
    """Sends what the module measured to the run, under the number of steps done."""

    def __init__(self, logger: RunLogger, bytes_at_start: int) -> None:
        self.logger = logger
        self.bytes_at_start = bytes_at_start

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        module = _ours(pl_module)
        self.logger.log_metrics(outputs, step=module.steps_done)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module = _ours(pl_module)
        peak = peak_bytes()
        measured = {
            **module.last_validation,
            names.PEAK_BYTES: float(peak),
            names.PEAK_BYTES_ABOVE_START: float(peak - self.bytes_at_start),
        }
        if module.positions_timed:
            measured[names.SPEED] = module.positions_timed / module.seconds_timed
        self.logger.log_metrics(measured, step=module.steps_done)
        self.logger.write_pending()


class InnerWeightWatch(Callback):
    """Calls `TTTMonitor` every so many steps with what each TTT layer's inner weights have become.

    The state is taken where it passes: at the layer's own output in the training step (of the last segment, where
    there are several). NaN or infinity ends the run.
    """

    def __init__(
        self, arm: str, layers: Mapping[int, TTTLayer], monitor: TTTMonitor, logger: RunLogger, every_steps: int
    ) -> None:
        self.arm = arm
        self.layers = layers
        self.monitor = monitor
        self.logger = logger
        self.every_steps = every_steps
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._seen: dict[int, tuple[TTTState, float]] = {}
        self._heeded = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        module = _ours(pl_module)
        step = module.steps_done + 1
        if step == 1 or step % self.every_steps == 0:
            self._hooks = [
                layer.register_forward_hook(self._observer(index), with_kwargs=True)
                for index, layer in self.layers.items()
            ]

    def _observer(self, index: int) -> Callable[..., None]:
        def observe(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            assert isinstance(layer, TTTLayer)
            given = dict(zip(("x", "state", "mask"), args, strict=False)) | kwargs
            mask = given.get("mask")
            losses = layer.inner_loss(given["x"], given.get("state"), mask)
            real = losses if mask is None else losses[mask[:, None].expand_as(losses)]
            self._seen[index] = (output[2].detach(), float(real.mean()))

        return observe

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        module = _ours(pl_module)
        for hook in self._hooks:
            hook.remove()
        for index, (state, inner_loss) in sorted(self._seen.items()):
            row = self.monitor.log_layer_state(
                index, state.W1, state.b1, state.W2, state.b2, step=module.steps_done, inner_loss=inner_loss,
                initial=state.initial,
            )  # fmt: skip
            numbers = {f"ttt/layer{index:02d}/{name}": value for name, value in row.items() if isinstance(value, float)}
            self.logger.log_metrics(numbers, step=module.steps_done)
        self._hooks, self._seen = [], {}
        self._heed_alarms()

    def _heed_alarms(self) -> None:
        """Prints new warnings, once each.

        Raises:
            DivergedRunError: an alarm is fatal.
        """
        new = self.monitor.alarms[self._heeded :]
        self._heeded += len(new)
        for alarm in new:
            self.logger.set_tag(f"alarm.{alarm.kind}.layer{alarm.layer}", alarm.message)
            if alarm.is_fatal:
                raise DivergedRunError(alarm.message)
            tqdm.write(f"warning: {self.arm}: {alarm.message}", file=sys.stderr)


class ProgressLines(Callback):
    """A bar on a terminal; elsewhere a line every tenth of the run, so that logs stay readable."""

    def __init__(self, arm: str, total_steps: int, line: int = 0) -> None:
        self.arm = arm
        self.line = line
        self.total_steps = total_steps
        self.bar: tqdm[NoReturn] | None = None
        self._started = time.monotonic()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module = _ours(pl_module)
        if sys.stderr.isatty():
            self.bar = tqdm(
                total=self.total_steps, initial=module.steps_done, desc=self.arm, unit="step", position=self.line
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        module = _ours(pl_module)
        loss = outputs[names.TRAIN_TEXT_LOSS]
        if self.bar is not None:
            self.bar.update()
            self.bar.set_postfix(loss=f"{loss:.3f}")
        elif module.steps_done % max(1, self.total_steps // PROGRESS_LINES) == 0:
            speed = module.positions_timed / module.seconds_timed if module.positions_timed else float("nan")
            print(
                f"{self.arm}: step {module.steps_done}/{self.total_steps}, text loss {loss:.3f}, "
                f"{speed:,.0f} positions/s, {time.monotonic() - self._started:.0f} s",
                flush=True,
            )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module = _ours(pl_module)
        found = module.last_validation
        recall = f", recall {found[names.RECALL_ALL]:.2f}" if names.RECALL_ALL in found else ""
        loss = found.get(names.VALIDATION_TEXT_LOSS, found[names.VALIDATION_LOSS])
        line = f"{self.arm}: validation after step {module.steps_done}: {loss:.3f}{recall}"
        tqdm.write(line) if self.bar is not None else print(line, flush=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.bar is not None:
            self.bar.close()
