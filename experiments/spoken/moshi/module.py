"""The LightningModule of Moshi: the next frame's text, and the units that the depth transformer says in it.

Shape letters: B conversations, T frames, K streams, C width, V text tokens, N frames drawn, D codebooks said.

What the text stream of a frame is takes two decisions, whether anything is written and which token: the loss of the
stream is the sum of both. The second is what Llama-Omni's text loss is, whose text never waits, and is logged under the
same name: nats of a text token given that there is one, with the most likely among the tokens for recall. The first is
logged as the timing loss, in nats per frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from moshi.models.lm import LMModel
from torch import Tensor
from torch.nn import functional

from backbones.moshi import delayed_sequence, set_inner_step_size, ttt_layers
from experiments.data.framing import UNITS_PER_FRAME
from experiments.harness import metric_names as names
from experiments.spoken import metric_names as spoken_names
from experiments.spoken.configuration import Arm, Trained
from experiments.spoken.module import SpokenModule
from experiments.spoken.moshi.configuration import MoshiExperiment
from experiments.spoken.moshi.loader import MoshiBatch

DEPTH_PARTS = ("depformer", "depformer_in", "depformer_emb", "depformer_text_emb", "depformer_norms", "linears")


class MoshiModule(SpokenModule):
    """Trains and measures one arm."""

    model: LMModel

    def __init__(self, model: LMModel, config: MoshiExperiment, arm: Arm) -> None:
        super().__init__(model, config, spoken_names.VALIDATION_AUDIO_LOSS)
        self.plan = config.training
        choose_trained(model, self.plan.trains, arm.upper_layers)

    # Training

    def positions_of(self, batch: MoshiBatch) -> int:
        return batch.positions

    def backward_batch(self, batch: MoshiBatch) -> dict[str, float]:
        """Gradients of a batch's text loss and of the audio loss of frames drawn by seed and step."""
        self._give_inner_step_size()
        sequence = delayed_sequence(self.model, batch.codes)
        hidden, text_logits = self.model.forward_text(sequence[:, :, :-1])
        is_real = batch.is_real()
        logits, targets = text_logits[:, 0][is_real], sequence[:, 0, 1:][is_real]
        weights = self._text_weights(sequence[:, 0, 1:], batch)[is_real]
        losses = functional.cross_entropy(logits.float(), targets, reduction="none")
        loss = (losses * weights).sum() / weights.sum()
        with torch.no_grad():
            parts = text_parts(logits, targets, self.model.text_padding_token_id)
        audio_total, units = self._audio_loss_sum(sequence, hidden, self._drawn_frames(batch))
        audio = audio_total / max(1, units)
        loss = loss + self.plan.speech_weight * audio
        self.manual_backward(loss)
        return {
            names.TRAIN_LOSS: float(loss.detach()),
            names.TRAIN_TEXT_LOSS: float(parts.token_nats.mean()),
            spoken_names.TRAIN_AUDIO_LOSS: float(audio.detach()),
        }

    def _give_inner_step_size(self) -> None:
        """During the inner warm-up, a smaller inner step size than the layers' own."""
        layers = ttt_layers(self.model)
        if not layers:
            return
        share = self.inner_step_size_share()
        own = next(iter(layers.values())).config.resolved_base_lr
        set_inner_step_size(self.model, None if share == 1.0 else own * share)

    def _text_weights(self, targets: Tensor, batch: MoshiBatch) -> Tensor:
        """(B, T) weight of every frame's text in the training loss."""
        has_no_text = targets == self.model.text_padding_token_id
        weights = torch.ones_like(targets, dtype=torch.float32)
        weights[has_no_text] = self.plan.text_padding_weight
        for sample, facts in enumerate(batch.asked_facts):
            for fact in facts:
                weights[sample, fact.positions] = self.plan.fact_value_weight
        return weights

    def _drawn_frames(self, batch: MoshiBatch) -> Tensor:
        """(N, 2) conversation and frame."""
        real = batch.is_real().cpu().nonzero()
        generator = torch.Generator().manual_seed(self.draw_seed())
        return real[torch.randperm(len(real), generator=generator)[: self.plan.audio_frames_per_step]]

    def _audio_loss_sum(self, sequence: Tensor, hidden: Tensor, frames: Tensor) -> tuple[Tensor, int]:
        """Nats of the units of (N, 2) frames, summed, and how many units those are.

        sequence (B, K, T + 1) as the model reads it, hidden (B, T, C). A codebook that is delayed is at that frame
        asked for an earlier frame's unit; where that one lies before the beginning, for nothing.
        """
        if not len(frames):
            return hidden.new_zeros(()), 0
        rows, steps = frames.to(hidden.device).unbind(dim=1)
        predicted = sequence[rows, :, steps + 1]
        logits = self.model.forward_depformer_training(predicted.T[None], hidden[rows, steps][None])
        logits, first = logits[0, :UNITS_PER_FRAME], self.model.audio_offset
        targets = predicted[:, first : first + UNITS_PER_FRAME].T
        is_unit = (targets >= 0) & (targets < self.model.card)
        total = functional.cross_entropy(logits[is_unit].float(), targets[is_unit], reduction="sum")
        return total, int(is_unit.sum())

    # Validation

    def validation_step(self, batch: MoshiBatch, batch_index: int) -> None:
        set_inner_step_size(self.model, None)
        sequence = delayed_sequence(self.model, batch.codes)
        hidden, text_logits = self.model.forward_text(sequence[:, :, :-1])
        no_text = self.model.text_padding_token_id
        for sample, facts in enumerate(batch.asked_facts):
            length = int(batch.lengths[sample])
            logits, targets = text_logits[sample, 0, :length], sequence[sample, 0, 1 : length + 1]
            parts = text_parts(logits, targets, no_text)
            frames = (targets != no_text).nonzero().flatten()
            self.scores.add_text(frames, batch.label_seconds[sample], parts.token_nats, parts.is_top, facts)
            self.scores.add_mean(spoken_names.VALIDATION_TIMING_LOSS, float(parts.timing_nats.double().sum()), length)
            spoken = torch.stack([torch.full_like(batch.spoken[sample], sample), batch.spoken[sample]], dim=1)
            total, units = self._audio_loss_sum(sequence, hidden, spoken)
            self.scores.add_mean(spoken_names.VALIDATION_AUDIO_LOSS, float(total), units)


@dataclass(frozen=True)
class TextParts:
    """The loss of a text stream in its two parts, FP32.

    token_nats, is_top: (tokens,), of frames with text, which token, given that there is one. timing_nats: (frames,),
    whether there is one. The two add up to the cross-entropy of the stream.
    """

    token_nats: Tensor
    is_top: Tensor
    timing_nats: Tensor


def text_parts(logits: Tensor, targets: Tensor, no_text: int) -> TextParts:
    """logits (frames, V) and targets (frames,) of one or more text streams; no_text: id of a frame without a token."""
    logits = logits.float()
    all_nats = torch.logsumexp(logits, dim=1)
    silent_logits = logits[:, no_text]
    among_tokens = logits.index_fill(1, torch.tensor([no_text], device=logits.device), -torch.inf)
    token_logits = torch.logsumexp(among_tokens, dim=1)
    has_text = targets != no_text
    said = targets[has_text]
    return TextParts(
        token_nats=token_logits[has_text] - logits[has_text].gather(1, said[:, None])[:, 0],
        is_top=among_tokens[has_text].argmax(dim=1) == said,
        timing_nats=all_nats - torch.where(has_text, token_logits, silent_logits),
    )


def choose_trained(model: LMModel, trains: Trained, upper_layers: Sequence[int]) -> None:
    """Lets the parameters that `trains` names require gradients, and no others."""
    if trains == "everything":
        return
    model.requires_grad_(False)
    for layer in upper_layers:
        model.transformer.layers[layer].self_attn.requires_grad_(True)
    for part in DEPTH_PARTS:
        model.get_submodule(part).requires_grad_(True)
