"""What the instability experiment is: one model and one set of batches, trained under ladders of step sizes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from experiments.fact_streams.configuration import ModelSizes, StreamTraining
from experiments.fact_streams.spec import FactStreamSpec
from experiments.harness.identity import plain_values
from experiments.harness.seeded import SeededExperiment
from ttt_core import TTTConfig


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One run.

    outer_rate_factor: by which both outer learning rates are multiplied.
    cures: the arm that this one repeats with another base_lr, to see whether that cures it; None for none.
    """

    name: str
    ttt: TTTConfig
    outer_rate_factor: float = 1.0
    cures: str | None = None


@dataclass(frozen=True, kw_only=True)
class InstabilityExperiment(SeededExperiment):
    """Arms x seeds, all on the same batches, so that losses are compared batch by batch.

    reference: the arm whose loss is a healthy one. A run is *lost* from the step on from which its loss, averaged over
    `smoothed_steps`, stays more than `lost_nats` above the reference's to the end.
    """

    model: ModelSizes
    stream: FactStreamSpec
    training: StreamTraining
    arms: tuple[Arm, ...]
    reference: str
    monitor_every_steps: int
    smoothed_steps: int
    lost_nats: float

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        if len(set(names)) != len(names):
            raise ValueError(f"arms need different names, got {names}")
        for wanted in (self.reference, *(arm.cures for arm in self.arms if arm.cures is not None)):
            if wanted not in names:
                raise ValueError(f"{self.recipe} has no arm {wanted!r} to compare with; it has {', '.join(names)}")
        for name in ("monitor_every_steps", "smoothed_steps", "lost_nats"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        for arm in self.arms:
            if not arm.outer_rate_factor > 0:
                raise ValueError(f"arm {arm.name!r}: outer_rate_factor must be above 0, got {arm.outer_rate_factor}")

    @property
    def arm_names(self) -> tuple[str, ...]:
        return tuple(arm.name for arm in self.arms)

    def arm_named(self, name: str) -> Arm:
        """The row called `name`. Raises ValueError, with those there are, when there is none."""
        for arm in self.arms:
            if arm.name == name:
                return arm
        raise ValueError(f"{self.recipe} has no arm {name!r}; it has {', '.join(self.arm_names)}")

    def training_of(self, arm: Arm) -> StreamTraining:
        return dataclasses.replace(
            self.training,
            learning_rate=self.training.learning_rate * arm.outer_rate_factor,
            ttt_learning_rate=self.training.ttt_learning_rate * arm.outer_rate_factor,
        )

    def of_arm(self, name: str) -> dict[str, Any]:
        """What one arm's result depends on."""
        arm = self.arm_named(name)
        return {
            "recipe": self.recipe,
            "scale": self.scale,
            "seed": self.seed,
            "model": plain_values(self.model),
            "stream": plain_values(self.stream),
            "training": plain_values(self.training_of(arm)),
            "monitor_every_steps": self.monitor_every_steps,
            "arm": plain_values(arm),
        }
