"""What the training of every backbone on spoken conversations has in common: the validation's scores, inner warm-up."""

from __future__ import annotations

from typing import Any

from torch import nn

from experiments.harness.counted_module import CountedModule
from experiments.harness.parameter_groups import UPPER_MIXERS
from experiments.spoken.carried_rows import CarriedRows, Left
from experiments.spoken.configuration import SpokenExperiment
from experiments.spoken.evaluation import ConversationScores

INNER_WARMUP_START = 0.1
"""Share of the inner step size at the first step of the inner warm-up, as in the published mlp runs (0.01 to 0.1)."""


class SpokenModule(CountedModule):
    """Trains and measures one arm. A child gives the losses, and fills `scores` in its validation steps.

    Where a batch is `CarriedRows`, what each row's piece leaves is what the row's next one goes on from. A checkpoint
    holds it, so that a resumed run is the uninterrupted one.

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
        self._chance_recall = config.data.chance_recall
        self._has_words = config.data.has_words
        self._speech_loss = speech_loss
        self.scores = self._new_scores()
        self.upper_mixers: list[nn.Module] = []
        self._left_by_rows: list[Left] | None = None

    # Training

    def backward_conversations(self, batch: Any, left: Left | None, carries: bool) -> tuple[dict[str, float], Left]:
        """Adds the gradients of conversations' losses to the parameters; gives what to log, and what they leave.

        left: of the piece before, which the only conversation of the batch goes on from; None begins anew. carries:
        whether what is left is wanted; else it is empty.
        """
        raise NotImplementedError

    def positions_of(self, batch: Any) -> int:
        return batch.positions

    def backward_batch(self, batch: Any) -> dict[str, float]:
        if not isinstance(batch, CarriedRows):
            return self.backward_conversations(batch, None, carries=False)[0]
        before = self._left_by_rows or [None] * len(batch.rows)
        measured: list[dict[str, float]] = []
        left_by_rows: list[Left] = []
        for row, left, begins in zip(batch.rows, before, batch.begins, strict=True):
            assert begins or left is not None, "a row goes on from a piece that this run has not read"
            losses, leaves = self.backward_conversations(row, None if begins else left, carries=True)
            measured.append(losses)
            left_by_rows.append(leaves)
        for parameter in self.trained_parameters():
            if parameter.grad is not None:
                parameter.grad /= len(batch.rows)
        self._left_by_rows = left_by_rows
        return {name: sum(losses[name] for losses in measured) / len(measured) for name in measured[0]}

    def carried(self) -> list[Left] | None:
        return self._left_by_rows

    def go_on_from(self, carried: list[Left] | None) -> None:
        self._left_by_rows = carried

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
        return ConversationScores(self.evaluation, self._chance_recall, has_words=self._has_words)
