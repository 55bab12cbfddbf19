"""The LightningModule of Llama-Omni: next-token loss on the assistant's text, CTC loss on its speech.

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
from experiments.spoken.configuration import Arm, Trained
from experiments.spoken.llama_omni.configuration import LlamaOmniExperiment
from experiments.spoken.llama_omni.loader import LlamaOmniBatch
from experiments.spoken.module import SpokenModule
from ttt_core import TTTLayer


class LlamaOmniModule(SpokenModule):
    """Trains and measures one arm."""

    model: LlamaOmni

    def __init__(self, model: LlamaOmni, config: LlamaOmniExperiment, arm: Arm) -> None:
        super().__init__(model, config, names.VALIDATION_CTC_LOSS)
        self.plan = config.training
        choose_trained(model, self.plan.trains, arm.upper_layers)
        if config.training.gradient_checkpointing:
            model.llm.gradient_checkpointing_enable()
        if self.plan.inner_warmup_steps and any(isinstance(part, TTTLayer) for part in model.modules()):
            model.llm.model.register_forward_pre_hook(self._give_inner_step_size, with_kwargs=True)

    # Training

    def positions_of(self, batch: LlamaOmniBatch) -> int:
        return batch.positions

    def backward_batch(self, batch: LlamaOmniBatch) -> dict[str, float]:
        """Gradients of a batch's text loss and of the speech loss of a few of its turns."""
        text_loss, ctc_loss = self._backward(batch)
        return {
            names.TRAIN_LOSS: text_loss + self.plan.speech_weight * ctc_loss,
            names.TRAIN_TEXT_LOSS: text_loss,
            names.TRAIN_CTC_LOSS: ctc_loss,
        }

    def _backward(self, batch: LlamaOmniBatch) -> tuple[float, float]:
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
                loss = loss + self.plan.speech_weight * ctc
                ctc_total += float(ctc.detach())
            self.manual_backward(loss)
            detach_cache(cache)
        if spliced.inputs_embeds.requires_grad:
            spliced.inputs_embeds.backward(embeddings.grad)
        return text_total / max(1, int((targets != IGNORED_LABEL).sum())), ctc_total

    def _token_weights(self, targets: Tensor, batch: LlamaOmniBatch) -> Tensor:
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
        generator = torch.Generator().manual_seed(self.draw_seed())
        order = torch.randperm(len(eligible), generator=generator).tolist()
        return [eligible[place] for place in order[: self.plan.ctc_turns_per_step]]

    def _give_inner_step_size(
        self, decoder: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """During the inner warm-up, tells the mounted decoder a smaller inner step size than the layers' own."""
        share = self.inner_step_size_share()
        if share == 1.0:
            return None
        own = next(part.config.resolved_base_lr for part in self.model.modules() if isinstance(part, TTTLayer))
        return args, kwargs | {"ttt_base_lr": own * share}

    # Validation

    def validation_step(self, batch: LlamaOmniBatch, batch_index: int) -> None:
        spliced = self.model.splice(batch.input_ids, batch.speech, batch.labels, attention_mask=batch.attention_mask)
        assert spliced.labels is not None
        hidden, _ = self.model.read(spliced.inputs_embeds, spliced.attention_mask)
        targets = next_labels(spliced.labels)
        for sample, facts in enumerate(batch.asked_facts):
            rows = (targets[sample] != IGNORED_LABEL).nonzero().flatten()
            logits = self.model.llm.lm_head(hidden[sample, rows]).float()
            losses = functional.cross_entropy(logits, targets[sample, rows], reduction="none")
            # A label's position is its own, one behind the state that predicts it.
            is_top = logits.argmax(dim=1) == targets[sample, rows]
            self.scores.add_text(rows + 1, batch.label_seconds[sample], losses, is_top, facts)
        turns = [
            (sample, turn)
            for sample, spoken in enumerate(batch.spoken_turns)
            for turn in spoken[: self.evaluation.speech_turns]
        ]
        if turns:
            units = sum(turn.units.numel() for _, turn in turns)
            self.scores.add_mean(names.VALIDATION_CTC_LOSS, float(self._ctc_loss_sum(hidden, turns, start=0)), units)


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
