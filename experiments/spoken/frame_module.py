"""Losses of a backbone that reads a frame at a time: the next frame's text, and the codes that are said in it.

Shape letters: B conversations, T frames, C width, V text tokens, N frames drawn.

What the text stream of a frame is takes two decisions, whether anything is written and which token: the loss of the
stream is the sum of both. The second is what Llama-Omni's text loss is, whose text never waits, and is logged under the
same name: nats of a text token given that there is one, with the most likely among the tokens for recall. The first is
logged as the timing loss, in nats per frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from experiments.harness import metric_names as names
from experiments.spoken import metric_names as spoken_names
from experiments.spoken.configuration import SpokenExperiment
from experiments.spoken.frame_batches import FrameBatch
from experiments.spoken.frame_training import FrameTraining
from experiments.spoken.module import SpokenModule


@dataclass(frozen=True)
class ReadFrames:
    """What a backbone made of a batch.

    hidden (B, T, C): what each frame is said from. text_logits (B, T, V). text (B, T) int64: what the frames have.
    codes: the streams as the backbone reads them, in whatever shape it does.
    """

    hidden: Tensor
    text_logits: Tensor
    text: Tensor
    codes: Tensor


class FrameModule(SpokenModule):
    """Trains and measures one arm. A child reads batches, and gives the loss of the codes of chosen frames."""

    def __init__(self, model: Any, config: SpokenExperiment, plan: FrameTraining, no_text_id: int) -> None:
        super().__init__(model, config, spoken_names.VALIDATION_AUDIO_LOSS)
        self.plan = plan
        self.no_text_id = no_text_id

    def read(self, batch: FrameBatch, inner_step_size_share: float) -> ReadFrames:
        """The batch through the model, TTT with that share of its inner step size."""
        raise NotImplementedError

    def audio_loss_sum(self, read: ReadFrames, frames: Tensor) -> tuple[Tensor, int]:
        """Nats of the codes of (N, 2) frames (conversation and frame), summed, and how many codes those are."""
        raise NotImplementedError

    # Training

    def positions_of(self, batch: FrameBatch) -> int:
        return batch.positions

    def backward_batch(self, batch: FrameBatch) -> dict[str, float]:
        """Gradients of a batch's text loss and of the audio loss of frames drawn by seed and step."""
        read = self.read(batch, self.inner_step_size_share())
        is_real = batch.is_real()
        logits, targets = read.text_logits[is_real], read.text[is_real]
        weights = self._text_weights(read.text, batch)[is_real]
        losses = functional.cross_entropy(logits.float(), targets, reduction="none")
        loss = (losses * weights).sum() / weights.sum()
        with torch.no_grad():
            parts = text_parts(logits, targets, self.no_text_id)
        audio_total, codes = self.audio_loss_sum(read, self._drawn_frames(batch))
        audio = audio_total / max(1, codes)
        loss = loss + self.plan.speech_weight * audio
        self.manual_backward(loss)
        return {
            names.TRAIN_LOSS: float(loss.detach()),
            names.TRAIN_TEXT_LOSS: float(parts.token_nats.mean()),
            spoken_names.TRAIN_AUDIO_LOSS: float(audio.detach()),
        }

    def _text_weights(self, targets: Tensor, batch: FrameBatch) -> Tensor:
        """(B, T) weight of every frame's text in the training loss."""
        weights = torch.ones_like(targets, dtype=torch.float32)
        weights[targets == self.no_text_id] = self.plan.text_padding_weight
        for sample, facts in enumerate(batch.asked_facts):
            for fact in facts:
                weights[sample, fact.positions] = self.plan.fact_value_weight
        return weights

    def _drawn_frames(self, batch: FrameBatch) -> Tensor:
        """(N, 2) conversation and frame."""
        real = batch.is_real().cpu().nonzero()
        generator = torch.Generator().manual_seed(self.draw_seed())
        return real[torch.randperm(len(real), generator=generator)[: self.plan.audio_frames_per_step]]

    # Validation

    def validation_step(self, batch: FrameBatch, batch_index: int) -> None:
        read = self.read(batch, 1.0)
        for sample, facts in enumerate(batch.asked_facts):
            length = int(batch.lengths[sample])
            logits, targets = read.text_logits[sample, :length], read.text[sample, :length]
            parts = text_parts(logits, targets, self.no_text_id)
            frames = (targets != self.no_text_id).nonzero().flatten()
            self.scores.add_text(frames, batch.label_seconds[sample], parts.token_nats, parts.is_top, facts)
            self.scores.add_mean(spoken_names.VALIDATION_TIMING_LOSS, float(parts.timing_nats.double().sum()), length)
            spoken = torch.stack([torch.full_like(batch.spoken[sample], sample), batch.spoken[sample]], dim=1)
            total, codes = self.audio_loss_sum(read, spoken)
            self.scores.add_mean(spoken_names.VALIDATION_AUDIO_LOSS, float(total), codes)


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
