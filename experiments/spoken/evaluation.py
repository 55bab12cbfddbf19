"""Validation measures, summed over conversations: loss by position, recall by distance, perplexity, speech loss."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from experiments.harness import metric_names as names
from experiments.harness.buckets import BucketedMean
from experiments.spoken.batches import AskedFact


class ConversationScores:
    """Adds up what the model predicts of validation conversations, teacher-forced, and gives the metrics."""

    def __init__(self, position_edges: Sequence[int], distance_edges: Sequence[int], chance_recall: float) -> None:
        self.chance_recall = chance_recall
        self.loss = BucketedMean(position_edges)
        self.recall = BucketedMean(distance_edges)
        self.value_loss = BucketedMean(distance_edges)
        self.text_loss_sum, self.tokens = 0.0, 0
        self.recalled, self.value_loss_sum, self.facts = 0, 0.0, 0
        self.ctc_loss_sum, self.units = 0.0, 0

    def add_text(self, positions: Tensor, token_losses: Tensor, is_top: Tensor, facts: Iterable[AskedFact]) -> None:
        """One conversation: (n,) rising label positions, losses in nats, whether the label was the most likely.

        Raises:
            ValueError: a fact's value stands where there is no label.
        """
        positions, token_losses, is_top = positions.cpu(), token_losses.float().cpu(), is_top.cpu()
        self.loss.add_many(positions, token_losses)
        self.text_loss_sum += float(token_losses.double().sum())
        self.tokens += len(positions)
        for fact in facts:
            rows = torch.searchsorted(positions, fact.positions)
            if int(rows.max()) >= len(positions) or not torch.equal(positions[rows], fact.positions):
                raise ValueError(f"the fact value at positions {fact.positions.tolist()} is not among the labels")
            self._add_fact(fact.distance, bool(is_top[rows].all()), float(token_losses[rows].double().sum()))

    def _add_fact(self, distance: int, recalled: bool, loss: float) -> None:
        self.recall.add(distance, float(recalled))
        self.value_loss.add(distance, loss)
        self.recalled += recalled
        self.value_loss_sum += loss
        self.facts += 1

    def add_speech(self, mean_loss: float, units: int) -> None:
        """CTC loss per unit over that many units."""
        self.ctc_loss_sum += mean_loss * units
        self.units += units

    def metrics(self, ctc_weight: float) -> dict[str, float]:
        """Everything measured, by its logged name."""
        assert self.tokens, "no validation conversation has a labelled token"
        text_loss = self.text_loss_sum / self.tokens
        measured = {
            names.VALIDATION_TEXT_LOSS: text_loss,
            names.VALIDATION_PERPLEXITY: math.exp(min(text_loss, 700.0)),
            names.RECALL_CHANCE: self.chance_recall,
            **self.loss.means(names.LOSS_BY_POSITION),
            **self.recall.means(names.RECALL_BY_DISTANCE),
            **self.value_loss.means(names.VALUE_LOSS_BY_DISTANCE),
            **self.recall.numbers(names.FACTS_BY_DISTANCE),
        }
        whole = text_loss
        if self.units:
            measured[names.VALIDATION_CTC_LOSS] = self.ctc_loss_sum / self.units
            whole += ctc_weight * measured[names.VALIDATION_CTC_LOSS]
        if self.facts:
            measured[names.RECALL_ALL] = self.recalled / self.facts
            measured[names.RECALL_VALUE_LOSS] = self.value_loss_sum / self.facts
        return measured | {names.VALIDATION_LOSS: whole}
