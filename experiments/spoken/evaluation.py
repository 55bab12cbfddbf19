"""Validation measures, summed over conversations: loss by position and time, recall by distance, perplexity, speech."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from experiments.harness import metric_names as names
from experiments.harness.buckets import BucketedMean
from experiments.spoken import metric_names as spoken_names
from experiments.spoken.batches import AskedFact
from experiments.spoken.configuration import EvaluationPlan


class ConversationScores:
    """Adds up what the model predicts of validation conversations, teacher-forced, and gives the metrics."""

    def __init__(self, plan: EvaluationPlan, chance_recall: float | None, has_words: bool = True) -> None:
        """chance_recall: None where no facts are known. has_words: False where a text stream is ends of turns alone."""
        self.chance_recall = chance_recall
        self.has_words = has_words
        self.speech_loss = BucketedMean(plan.position_edges)
        self.speech_loss_by_time = BucketedMean(plan.seconds_edges)
        self.loss = BucketedMean(plan.position_edges)
        self.recall = BucketedMean(plan.distance_edges)
        self.value_loss = BucketedMean(plan.distance_edges)
        self.loss_by_time = BucketedMean(plan.seconds_edges)
        self.recall_by_seconds = BucketedMean(plan.seconds_edges)
        self.value_loss_by_seconds = BucketedMean(plan.seconds_edges)
        self.text_loss_sum, self.tokens = 0.0, 0
        self.recalled, self.value_loss_sum, self.facts = 0, 0.0, 0
        self._totals: dict[str, tuple[float, int]] = {}

    def add_text(
        self, positions: Tensor, seconds: Tensor, token_losses: Tensor, is_top: Tensor, facts: Iterable[AskedFact]
    ) -> None:
        """One conversation: (n,) rising label positions, when their turns begin, nats, whether the label came first.

        Raises:
            ValueError: a fact's value stands where there is no label.
        """
        positions, token_losses, is_top = positions.cpu(), token_losses.float().cpu(), is_top.cpu()
        self.loss.add_many(positions, token_losses)
        self.loss_by_time.add_many(seconds.cpu().long(), token_losses)
        self.text_loss_sum += float(token_losses.double().sum())
        self.tokens += len(positions)
        for fact in facts:
            rows = torch.searchsorted(positions, fact.positions)
            if int(rows.max()) >= len(positions) or not torch.equal(positions[rows], fact.positions):
                raise ValueError(f"the fact value at positions {fact.positions.tolist()} is not among the labels")
            self._add_fact(fact, bool(is_top[rows].all()), float(token_losses[rows].double().sum()))

    def add_speech(self, position: int, seconds: int, total: float, codes: int) -> None:
        """The summed nats of so many codes of speech, all of one bucket of positions and one of seconds."""
        self.speech_loss.add_sum(position, total, codes)
        self.speech_loss_by_time.add_sum(seconds, total, codes)

    def _add_fact(self, fact: AskedFact, recalled: bool, loss: float) -> None:
        self.recall.add(fact.distance, float(recalled))
        self.value_loss.add(fact.distance, loss)
        self.recall_by_seconds.add(math.floor(fact.seconds), float(recalled))
        self.value_loss_by_seconds.add(math.floor(fact.seconds), loss)
        self.recalled += recalled
        self.value_loss_sum += loss
        self.facts += 1

    def add_mean(self, name: str, total: float, count: int) -> None:
        """A sum over `count` things, to be logged as their mean under that name."""
        known_total, known_count = self._totals.get(name, (0.0, 0))
        self._totals[name] = known_total + total, known_count + count

    def metrics(self, speech_loss: str | None, speech_weight: float) -> dict[str, float]:
        """Everything measured, by its logged name. speech_loss: name of the mean that is the speech's loss."""
        assert self.tokens, "no validation conversation has a labelled token"
        text_loss = self.text_loss_sum / self.tokens
        measured = {
            **(self._text_metrics(text_loss) if self.has_words else {}),
            **({} if self.chance_recall is None else self._recall_metrics(self.chance_recall)),
            **self.speech_loss.means(spoken_names.SPEECH_LOSS_BY_POSITION),
            **self.speech_loss_by_time.means(spoken_names.SPEECH_LOSS_BY_TIME),
            **{name: total / count for name, (total, count) in self._totals.items() if count},
        }
        speech = 0.0 if speech_loss is None else measured.get(speech_loss, 0.0)
        written = text_loss if self.has_words else 0.0
        return measured | {names.VALIDATION_LOSS: written + speech_weight * speech}

    def _text_metrics(self, text_loss: float) -> dict[str, float]:
        return {
            names.VALIDATION_TEXT_LOSS: text_loss,
            names.VALIDATION_PERPLEXITY: math.exp(min(text_loss, 700.0)),
            **self.loss.means(names.LOSS_BY_POSITION),
            **self.loss_by_time.means(spoken_names.LOSS_BY_TIME),
        }

    def _recall_metrics(self, chance: float) -> dict[str, float]:
        measured = {
            names.RECALL_CHANCE: chance,
            **self.recall.means(names.RECALL_BY_DISTANCE),
            **self.value_loss.means(names.VALUE_LOSS_BY_DISTANCE),
            **self.recall.numbers(names.FACTS_BY_DISTANCE),
            **self.recall_by_seconds.means(spoken_names.RECALL_BY_SECONDS),
            **self.value_loss_by_seconds.means(spoken_names.VALUE_LOSS_BY_SECONDS),
            **self.recall_by_seconds.numbers(spoken_names.FACTS_BY_SECONDS),
        }
        if self.facts:
            measured[names.RECALL_ALL] = self.recalled / self.facts
            measured[names.RECALL_VALUE_LOSS] = self.value_loss_sum / self.facts
        return measured
