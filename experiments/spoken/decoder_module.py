"""What training has in common where a decoder of transformers writes the text: losses, segments, inner warm-up.

Shape letters: B conversations, T positions, C hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from backbones.mounting import MountedCache
from backbones.mounting.decoder import MountedCausalLM
from experiments.data.packing import IGNORED_LABEL
from experiments.spoken.batches import AskedFact
from experiments.spoken.carried_rows import Left, cache_left, left_of_cache
from experiments.spoken.configuration import DecoderTraining, SpokenExperiment
from experiments.spoken.lora import add_adapters
from experiments.spoken.module import SpokenModule
from ttt_core import TTTLayer


class LabelledBatch(Protocol):
    """What this asks of a batch. asked_facts, label_seconds: per conversation, in positions of the decoder."""

    @property
    def asked_facts(self) -> Sequence[Sequence[AskedFact]]: ...

    @property
    def label_seconds(self) -> Sequence[Tensor]: ...


class DecoderModule(SpokenModule):
    """A child gives `read`, and adds its loss on speech, if it has one, in `speech_loss_of`."""

    def __init__(
        self, model: Any, llm: PreTrainedModel, config: SpokenExperiment, plan: DecoderTraining, speech_loss: str | None
    ) -> None:
        super().__init__(model, config, speech_loss)
        self.plan = plan
        if plan.gradient_checkpointing:
            llm.gradient_checkpointing_enable()
        if plan.inner_warmup_steps and any(isinstance(part, TTTLayer) for part in model.modules()):
            llm.model.register_forward_pre_hook(self._give_inner_step_size, with_kwargs=True)

    def add_adapters(self, upper_layers: Sequence[int]) -> None:
        """What the plan says of adapters, in the layers below the upper ones."""
        if self.plan.lora is not None:
            lower = [layer for layer in range(self.llm.config.num_hidden_layers) if layer not in upper_layers]
            add_adapters(self.llm, self.plan.lora, lower)

    @property
    def llm(self) -> PreTrainedModel:
        """The decoder with its head."""
        raise NotImplementedError

    def read(
        self, embeddings: Tensor, mask: Tensor, cache: Cache | None, past_mask: Tensor | None, use_cache: bool
    ) -> tuple[Tensor, Cache | None]:
        """Hidden states (B, T, C) of embeddings (B, T, C), and the cache after them.

        mask (B, T), past_mask (B, positions in the cache): True where a position is real.
        """
        raise NotImplementedError

    def speech_loss_of(self, hidden: Tensor, start: int, end: int) -> Tensor | None:
        """The part of the step's (unweighted) loss on speech that lies in positions [start, end); None for none."""
        return None

    # Training

    def backward_segments(
        self, embeddings: Tensor, labels: Tensor, mask: Tensor, segments: Sequence[tuple[int, int]],
        batch: LabelledBatch, left: Left | None, carries: bool,
    ) -> tuple[float, float, Left]:  # fmt: skip
        """Gradients of the whole batch's loss, segment by segment; gives its (unweighted) text and speech loss.

        left, carries, and what is given last: see `backward_conversations`.
        """
        targets = next_labels(labels)
        weights = self._token_weights(targets, batch)
        # Each segment's graph is freed when it was walked back; what all of them read is walked back once, at the end.
        # Where nothing below is trained the lower layers have no graph at all. Checkpointed layers need one to hang on.
        needs_gradient = embeddings.requires_grad or self.plan.gradient_checkpointing
        inputs = embeddings.detach().requires_grad_(needs_gradient)
        cache = None if left is None else cache_left(left, self.llm, isinstance(self.llm, MountedCausalLM))
        seen = 0 if cache is None else cache.get_seq_length()
        whole_mask = torch.cat([mask.new_ones(len(mask), seen), mask], dim=1)
        keeps_cache = carries or len(segments) > 1
        text_total, speech_total = 0.0, 0.0
        for start, end in segments:
            past_mask = whole_mask[:, : seen + start] if cache is not None else None
            hidden, cache = self.read(inputs[:, start:end], mask[:, start:end], cache, past_mask, keeps_cache)
            losses, is_label = self._token_losses(hidden, targets[:, start:end])
            loss = (losses * weights[:, start:end][is_label]).sum() / weights.sum()
            text_total += float(losses.detach().sum())
            speech = self.speech_loss_of(hidden, start, end)
            if speech is not None:
                loss = loss + self.plan.speech_weight * speech
                speech_total += float(speech.detach())
            self.manual_backward(loss)
            detach_cache(cache)
        if embeddings.requires_grad:
            embeddings.backward(inputs.grad)
        leaves: Left = {}
        if carries:
            assert cache is not None
            leaves = left_of_cache(cache)
        return text_total / max(1, int((targets != IGNORED_LABEL).sum())), speech_total, leaves

    def segments(self, positions: int) -> Iterator[tuple[int, int]]:
        """[start, end) of what is read with one graph."""
        length = self.plan.segment_positions or positions
        for start in range(0, positions, length):
            yield start, min(start + length, positions)

    def _token_weights(self, targets: Tensor, batch: LabelledBatch) -> Tensor:
        """(B, T) weight of what each position predicts in the training loss: 0 where it predicts nothing."""
        weights = (targets != IGNORED_LABEL).float()
        for sample, facts in enumerate(batch.asked_facts):
            for fact in facts:
                weights[sample, fact.positions - 1] = self.plan.fact_value_weight
        return weights

    def _token_losses(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """(labels,) FP32 nats of what is predicted, and (B, T) bool: the positions that predict it."""
        is_label = targets != IGNORED_LABEL
        logits = self.llm.lm_head(hidden[is_label])
        return functional.cross_entropy(logits.float(), targets[is_label], reduction="none"), is_label

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

    def read_whole(self, embeddings: Tensor, mask: Tensor) -> Tensor:
        """(B, T, C) of embeddings (B, T, C), read in the segments of the training, which changes memory alone."""
        segments = list(self.segments(embeddings.shape[1]))
        if self.forgets_every is not None:
            starts = range(0, embeddings.shape[1], self.forgets_every)
            pieces = [(embeddings[:, s : s + self.forgets_every], mask[:, s : s + self.forgets_every]) for s in starts]
            return torch.cat([self.read(*piece, None, None, use_cache=False)[0] for piece in pieces], dim=1)
        if len(segments) == 1:
            return self.read(embeddings, mask, None, None, use_cache=False)[0]
        cache: Cache | None = None
        parts = []
        for start, end in segments:
            past_mask = mask[:, :start] if cache is not None else None
            hidden, cache = self.read(embeddings[:, start:end], mask[:, start:end], cache, past_mask, use_cache=True)
            parts.append(hidden)
        return torch.cat(parts, dim=1)

    def score_text(self, hidden: Tensor, labels: Tensor, batch: LabelledBatch) -> None:
        """Adds what hidden (B, T, C) predict of labels (B, T) to the scores."""
        targets = next_labels(labels)
        for sample, facts in enumerate(batch.asked_facts):
            rows = (targets[sample] != IGNORED_LABEL).nonzero().flatten()
            logits = self.llm.lm_head(hidden[sample, rows]).float()
            losses = functional.cross_entropy(logits, targets[sample, rows], reduction="none")
            # A label's position is its own, one behind the state that predicts it.
            is_top = logits.argmax(dim=1) == targets[sample, rows]
            self.scores.add_text(rows + 1, batch.label_seconds[sample], losses, is_top, facts)


def train_upper_mixers_alone(llm: PreTrainedModel, upper_layers: Sequence[int]) -> None:
    """Of a language model, lets what mixes positions in `upper_layers` require gradients, and nothing else."""
    llm.requires_grad_(False)
    for layer in upper_layers:
        llm.model.layers[layer].self_attn.requires_grad_(True)


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
