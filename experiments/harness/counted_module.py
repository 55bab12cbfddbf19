"""The part of training that is the same for every model: steps, learning rates, optimiser groups, speed, divergence."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningModule

from experiments.harness import metric_names as names
from experiments.harness.parameter_groups import ALL_TTT, GroupedParameters, ParameterGroup, require_usable
from experiments.harness.stopping import DivergedRunError
from ttt_core import TTTLayer

BETAS = (0.9, 0.95)


@dataclass(frozen=True, kw_only=True)
class OptimiserPlan:
    """AdamW with a linear warm-up and a cosine down to a fraction of the peak; TTT's parameters have their own rate.

    groups: where any are given, they alone say what is trained, from which step on and at which rate, of what the
        experiment lets be trained at all; `learning_rate` and `ttt_learning_rate` then have nothing to act on.
    """

    learning_rate: float
    ttt_learning_rate: float
    weight_decay: float = 0.1
    warmup_steps: int
    final_learning_rate_fraction: float = 0.1
    gradient_clip_norm: float = 1.0
    groups: tuple[ParameterGroup, ...] = ()

    def __post_init__(self) -> None:
        for name in ("learning_rate", "ttt_learning_rate", "gradient_clip_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{type(self).__name__}.{name} must be above 0, got {getattr(self, name)}")
        require_usable(self.groups)

    def learning_rate_factor(self, step: int, total_steps: int) -> float:
        """Share of the peak learning rate at a step counted from 0."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, total_steps - self.warmup_steps)
        low = self.final_learning_rate_fraction
        return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    def thawing_factor(self, step: int, rows: Mapping[str, Any]) -> float:
        """Share of the rate of an optimiser's rows: those that are thawed in mid-run warm up from there."""
        from_step = rows.get("from_step", 0)
        if not from_step:
            return 1.0
        return min(1.0, max(0, step - from_step + 1) / max(1, self.warmup_steps))


class CountedModule(LightningModule):
    """Trains one arm.

    Steps are counted here (`steps_done`), not by Lightning: a resumed run is a new Lightning run that goes on counting.
    A child gives `backward_batch` and `positions_of`, and fills `last_validation`.
    """

    def __init__(self, plan: OptimiserPlan, total_steps: int, validate_every_steps: int) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.optimiser_plan = plan
        self.total_steps = total_steps
        self.validate_every_steps = validate_every_steps
        self.steps_done = 0
        self.seconds_timed = 0.0
        self.positions_timed = 0
        self.last_validation: dict[str, float] = {}
        self._has_warmed_up = False
        self._grouped: GroupedParameters | None = None

    def backward_batch(self, batch: Any) -> dict[str, float]:
        """Adds the gradients of a batch's loss to the parameters; gives what there is to log of it."""
        raise NotImplementedError

    def positions_of(self, batch: Any) -> int:
        """Real positions in a batch."""
        raise NotImplementedError

    def carried(self) -> list[dict[str, Any]] | None:
        """What the step to come goes on from beside weights and optimiser: tensors and numbers, for a checkpoint.

        None where every step begins anew.
        """
        return None

    def go_on_from(self, carried: list[dict[str, Any]] | None) -> None:
        """Takes back what `carried` gave when the checkpoint was written."""
        assert carried is None, "a checkpoint has a state that this module does not carry"

    def training_step(self, batch: Any, batch_index: int) -> dict[str, float]:
        """One optimiser step. Gives what there is to log.

        Raises:
            DivergedRunError: NaN or infinity in a loss or in the gradient's norm; the weights are as before the step.
        """
        started = time.perf_counter()
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)
        factor = self.optimiser_plan.learning_rate_factor(self.steps_done, self.total_steps)
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor * self.optimiser_plan.thawing_factor(self.steps_done, group)
        if self._grouped is not None:
            self._grouped.thaw(self.steps_done)
        optimizer.zero_grad()
        losses = self.backward_batch(batch)
        norm = torch.nn.utils.clip_grad_norm_(self.trained_parameters(), self.optimiser_plan.gradient_clip_norm)
        logged = losses | {
            names.TRAIN_GRADIENT_NORM: float(norm),
            names.TRAIN_LEARNING_RATE: self.optimiser_plan.learning_rate * factor,
        }
        if self._grouped is not None:
            logged |= self._grouped.learning_rates(optimizer.param_groups, self.steps_done)
        broken = [name for name, value in logged.items() if not math.isfinite(value)]
        if broken:
            raise DivergedRunError(f"{', '.join(broken)} became NaN or infinite in step {self.steps_done}")
        optimizer.step()
        self.steps_done += 1
        self._count_speed(time.perf_counter() - started, self.positions_of(batch))
        return logged

    def _count_speed(self, seconds: float, positions: int) -> None:
        """The first step of a process is left out: it also pays for what is set up once."""
        if self._has_warmed_up:
            self.seconds_timed += seconds
            self.positions_timed += positions
        self._has_warmed_up = True

    def validates_after(self, step: int) -> bool:
        """Whether a validation follows the step with this number (counted from 1)."""
        return step % self.validate_every_steps == 0 or step == self.total_steps

    def trained_parameters(self) -> list[torch.nn.Parameter]:
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def named_parts(self) -> dict[str, list[torch.nn.Module]]:
        """Modules by the names that groups of parameters may hold."""
        return {ALL_TTT: [module for module in self.modules() if isinstance(module, TTTLayer)]}

    def group_parameters(self) -> None:
        """Freezes what is in none of the plan's groups, where it has any. Done once."""
        if self.optimiser_plan.groups and self._grouped is None:
            self._grouped = GroupedParameters(self, self.optimiser_plan.groups, self.named_parts())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW over four groups: TTT's parameters and the others, each with and without weight decay.

        No decay on vectors, and none on what the inner loop starts from: decay would pull it to 0, where the inner
        model has no gradient.
        """
        plan = self.optimiser_plan
        layers = [module for module in self.modules() if isinstance(module, TTTLayer)]
        inner = {id(p) for layer in layers for p in layer.inner_parameters()}
        self.group_parameters()
        if self._grouped is not None:
            return torch.optim.AdamW(self._grouped.rows(plan.weight_decay, inner), betas=BETAS)
        own = {id(p) for layer in layers for p in layer.parameters()}
        groups: dict[tuple[bool, bool], list[torch.nn.Parameter]] = {}
        for parameter in self.trained_parameters():
            decays = parameter.dim() > 1 and id(parameter) not in inner
            groups.setdefault((id(parameter) in own, decays), []).append(parameter)
        rates = {True: plan.ttt_learning_rate, False: plan.learning_rate}
        return torch.optim.AdamW(
            [
                {
                    "params": parameters,
                    "lr": rates[is_ttt],
                    "peak_lr": rates[is_ttt],
                    "weight_decay": plan.weight_decay if decays else 0.0,
                }
                for (is_ttt, decays), parameters in groups.items()
            ],
            betas=BETAS,
        )
