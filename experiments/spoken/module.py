"""What the training of every backbone on spoken conversations has in common: the validation's scores, inner warm-up."""

from __future__ import annotations

from typing import Any

from torch import nn

from experiments.harness.counted_module import CountedModule
from experiments.harness.parameter_groups import UPPER_MIXERS
from experiments.spoken.configuration import SpokenExperiment
from experiments.spoken.evaluation import ConversationScores

INNER_WARMUP_START = 0.1
"""Share of the inner step size at the first step of the inner warm-up, as in the published mlp runs (0.01 to 0.1)."""


class SpokenModule(CountedModule):
    """Trains and measures one arm. A child gives the losses, and fills `scores` in its validation steps.

    upper_mixers: what mixes positions in the upper layers: TTT, or the attention that it is compared with.
    forgets_every: positions after which a validation starts anew with a fresh memory, as a control; None: never.
    """

    forgets_every: int | None = None

    def __init__(self, model: Any, config: SpokenExperiment, speech_loss: str | None) -> None:
        super().__init__(config.training, config.data.steps, config.evaluation.validate_every_steps)
        self.model = model
        self.evaluation = config.evaluation
        self.seed = config.seed
        self._speech_weight = config.training.speech_weight
        self._inner_warmup_steps = config.training.inner_warmup_steps
        self._chance_recall = config.data.spec.chance_recall
        self._speech_loss = speech_loss
        self.scores = self._new_scores()
        self.upper_mixers: list[nn.Module] = []

    def named_parts(self) -> dict[str, list[nn.Module]]:
        return super().named_parts() | {UPPER_MIXERS: self.upper_mixers}

    def inner_step_size_share(self) -> float:
        """Share of the inner step size that the step to come is made with."""
        if self.steps_done >= self._inner_warmup_steps:
            return 1.0
        return INNER_WARMUP_START + (1 - INNER_WARMUP_START) * self.steps_done / self._inner_warmup_steps

    def draw_seed(self) -> int:
        """Seed of what the step to come draws beside its conversations."""
        return self.seed * 1_000_003 + self.steps_done

    def on_validation_epoch_start(self) -> None:
        self.scores = self._new_scores()

    def on_validation_epoch_end(self) -> None:
        self.last_validation = self.scores.metrics(self._speech_loss, self._speech_weight)

    def _new_scores(self) -> ConversationScores:
        return ConversationScores(self.evaluation, self._chance_recall)
