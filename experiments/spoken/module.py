"""The LightningModule of spoken conversations: next-token loss on the assistant's text, CTC loss on its speech.

Shape letters: B conversations, T positions, C hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer

from backbones.llama_omni import IGNORED_LABEL, LlamaOmni, SpokenTurn
from backbones.mounting import MountedCache
from experiments.harness import metric_names as names
from experiments.harness.counted_module import CountedModule
from experiments.spoken.batches import ConversationBatch
from experiments.spoken.configuration import SpokenExperiment, Trained
from experiments.spoken.evaluation import ConversationScores
from ttt_core import TTTLayer

INNER_WARMUP_START = 0.1
"""Share of the inner step size at the first step of the inner warm-up, as in the published mlp runs (0.01 to 0.1)."""


class SpokenConversationModule(CountedModule):
    """Trains and measures one arm."""

    def __init__(self, model: LlamaOmni, config: SpokenExperiment, upper_layers: Sequence[int]) -> None:
        super().__init__(config.training, config.data.steps, config.evaluation.validate_every_steps)
        self.model = model
        self.plan = config.training
        choose_trained(model, self.plan.trains, upper_layers)
        self.evaluation = config.evaluation
        self.seed = config.seed
        self.chance_recall = config.data.spec.chance_recall
        self._scores = self._new_scores()
        if config.training.gradient_checkpointing:
            model.llm.gradient_checkpointing_enable()
        if self.plan.inner_warmup_steps and any(isinstance(part, TTTLayer) for part in model.modules()):
            model.llm.model.register_forward_pre_hook(self._give_inner_step_size, with_kwargs=True)

    # Training

    def positions_of(self, batch: ConversationBatch) -> int:
        return batch.positions

    def backward_batch(self, batch: ConversationBatch) -> dict[str, float]:
        """Gradients of a batch's text loss and of the speech loss of a few of its turns."""
        text_loss, ctc_loss = self._backward(batch)
        return {
            names.TRAIN_LOSS: text_loss + self.plan.ctc_weight * ctc_loss,
            names.TRAIN_TEXT_LOSS: text_loss,
            names.TRAIN_CTC_LOSS: ctc_loss,
        }

    def _backward(self, batch: ConversationBatch) -> tuple[float, float]:
        """Gradients of the whole batch's loss, segment by segment; gives its (unweighted) text and its CTC loss."""
        spliced = self.model.splice(batch.input_ids, batch.speech, batch.labels, attention_mask=batch.attention_mask)
        assert spliced.labels is not None
        targets = next_labels(spliced.labels)
        weights = self._token_weights(targets, batch)
        segments = list(self._segments(targets.shape[1]))
        turns = self._drawn_turns(batch.spoken_turns, segments)
        units = sum(turn.units.numel() for _, turn in turns)
        # Each segment's graph is freed when it was walked back; what all of them read is walked back once, at the end.
        embeddings = spliced.inputs_embeds.detach().requires_grad_()
        cache: Cache | None = None
        text_total, ctc_total = 0.0, 0.0
        for start, end in segments:
            hidden, cache = self.model.read(
                embeddings[:, start:end],
                spliced.attention_mask[:, start:end],
                past_key_values=cache,
                past_attention_mask=spliced.attention_mask[:, :start] if cache is not None else None,
                use_cache=len(segments) > 1,
            )
            losses, is_label = self._token_losses(hidden, targets[:, start:end])
            loss = (losses * weights[:, start:end][is_label]).sum() / weights.sum()
            text_total += float(losses.detach().sum())
            inside = [(sample, turn) for sample, turn in turns if start < turn.start and turn.end <= end]
            if inside:
                ctc = self._ctc_loss_sum(hidden, inside, start) / units
                loss = loss + self.plan.ctc_weight * ctc
                ctc_total += float(ctc.detach())
            self.manual_backward(loss)
            detach_cache(cache)
        if spliced.inputs_embeds.requires_grad:
            spliced.inputs_embeds.backward(embeddings.grad)
        return text_total / max(1, int((targets != IGNORED_LABEL).sum())), ctc_total

    def _token_weights(self, targets: Tensor, batch: ConversationBatch) -> Tensor:
        """(B, T) weight of what each position predicts in the training loss: 0 where it predicts nothing."""
        weights = (targets != IGNORED_LABEL).float()
        for sample, facts in enumerate(batch.asked_facts):
            for fact in facts:
                weights[sample, fact.positions - 1] = self.plan.fact_value_weight
        return weights

    def _segments(self, positions: int) -> Iterator[tuple[int, int]]:
        length = self.plan.segment_positions or positions
        for start in range(0, positions, length):
            yield start, min(start + length, positions)

    def _token_losses(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """(labels,) FP32 nats of what is predicted, and (B, T) bool: the positions that predict it."""
        is_label = targets != IGNORED_LABEL
        logits = self.model.llm.lm_head(hidden[is_label])
        return functional.cross_entropy(logits.float(), targets[is_label], reduction="none"), is_label

    def _ctc_loss_sum(self, hidden: Tensor, turns: Sequence[tuple[int, SpokenTurn]], start: int) -> Tensor:
        """Summed over units. A token is spoken by the state that predicted it, one position before its own."""
        states = [hidden[sample, turn.start - 1 - start : turn.end - 1 - start] for sample, turn in turns]
        units = [turn.units.to(hidden.device) for _, turn in turns]
        generator = self.model.speech_generator
        return generator.speech_loss(states, units, generator.window).loss * sum(u.numel() for u in units)

    def _drawn_turns(
        self, spoken: Sequence[Sequence[SpokenTurn]], segments: Sequence[tuple[int, int]]
    ) -> list[tuple[int, SpokenTurn]]:
        """The step's turns for the CTC loss, drawn by seed and step from those that lie inside one segment."""
        eligible = [
            (sample, turn)
            for sample, turns in enumerate(spoken)
            for turn in turns
            if any(start < turn.start and turn.end <= end for start, end in segments)
        ]
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.steps_done)
        order = torch.randperm(len(eligible), generator=generator).tolist()
        return [eligible[place] for place in order[: self.plan.ctc_turns_per_step]]

    def _give_inner_step_size(
        self, decoder: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """During the inner warm-up, tells the mounted decoder a smaller inner step size than the layers' own."""
        if self.steps_done >= self.plan.inner_warmup_steps:
            return None
        own = next(part.config.resolved_base_lr for part in self.model.modules() if isinstance(part, TTTLayer))
        share = self.steps_done / self.plan.inner_warmup_steps
        return args, kwargs | {"ttt_base_lr": own * (INNER_WARMUP_START + (1 - INNER_WARMUP_START) * share)}

    # Validation

    def _new_scores(self) -> ConversationScores:
        return ConversationScores(self.evaluation.position_edges, self.evaluation.distance_edges, self.chance_recall)

    def on_validation_epoch_start(self) -> None:
        self._scores = self._new_scores()

    def validation_step(self, batch: ConversationBatch, batch_index: int) -> None:
        spliced = self.model.splice(batch.input_ids, batch.speech, batch.labels, attention_mask=batch.attention_mask)
        assert spliced.labels is not None
        hidden, _ = self.model.read(spliced.inputs_embeds, spliced.attention_mask)
        targets = next_labels(spliced.labels)
        for sample, facts in enumerate(batch.asked_facts):
            rows = (targets[sample] != IGNORED_LABEL).nonzero().flatten()
            logits = self.model.llm.lm_head(hidden[sample, rows]).float()
            losses = functional.cross_entropy(logits, targets[sample, rows], reduction="none")
            # A label's position is its own, one behind the state that predicts it.
            self._scores.add_text(rows + 1, losses, logits.argmax(dim=1) == targets[sample, rows], facts)
        turns = [
            (sample, turn)
            for sample, spoken in enumerate(batch.spoken_turns)
            for turn in spoken[: self.evaluation.ctc_turns]
        ]
        if turns:
            units = sum(turn.units.numel() for _, turn in turns)
            self._scores.add_speech(float(self._ctc_loss_sum(hidden, turns, start=0)) / units, units)

    def on_validation_epoch_end(self) -> None:
        self.last_validation = self._scores.metrics(self.plan.ctc_weight)


def choose_trained(model: LlamaOmni, trains: Trained, upper_layers: Sequence[int]) -> None:
    """Lets the parameters that `trains` names require gradients, and no others."""
    model.train_only("joint")
    if trains == "upper_mixers_and_speech":
        model.llm.requires_grad_(False)
        for layer in upper_layers:
            model.llm.model.layers[layer].self_attn.requires_grad_(True)


def next_labels(labels: Tensor) -> Tensor:
    """(B, T) labels -> (B, T) what each position predicts: the label one position on, nothing at the end."""
    return functional.pad(labels[:, 1:], (0, 1), value=IGNORED_LABEL)


def detach_cache(cache: Cache | None) -> None:
    """Cuts what a cache carries over from the autograd graph."""
    if isinstance(cache, MountedCache):
        cache.detach()
    elif isinstance(cache, DynamicCache):
        for layer in cache.layers:
            assert isinstance(layer, DynamicLayer) and layer.keys is not None and layer.values is not None
            layer.keys, layer.values = layer.keys.detach(), layer.values.detach()
