"""Losses of a backbone that reads a frame at a time: the next frame's text, and the codes that are said in it.

Shape letters: B conversations, T frames, C width, V text tokens, N frames drawn.

What the text stream of a frame is takes two decisions, whether anything is written and which token: the loss of the
stream is the sum of both. The second is what Llama-Omni's text loss is, whose text never waits, and is logged under the
same name: nats of a text token given that there is one, with the most likely among the tokens for recall. The first is
logged as the timing loss, in nats per frame.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from experiments.data.framing import FRAME_RATE_HZ
from experiments.harness import metric_names as names
from experiments.spoken import metric_names as spoken_names
from experiments.spoken.carried_rows import Left, with_lead
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
    """Trains and measures one arm. A child reads batches, and gives the loss of the codes of chosen frames.

    blind_frames: first frames of every segment but the first that are read without all that their windows should hold:
    nothing is learned from them.
    """

    blind_frames = 0

    def __init__(self, model: Any, config: SpokenExperiment, plan: FrameTraining, no_text_id: int) -> None:
        super().__init__(model, config, spoken_names.VALIDATION_AUDIO_LOSS)
        self.plan = plan
        self.no_text_id = no_text_id

    def read(self, batch: FrameBatch, inner_step_size_share: float) -> ReadFrames:
        """The batch through the model, TTT with that share of its inner step size."""
        raise NotImplementedError

    def read_part(
        self, batch: FrameBatch, start: int, end: int, carried: Any, inner_step_size_share: float
    ) -> tuple[ReadFrames, Any]:
        """Frames [start, end) alone, from what the part before left; and what this one leaves, cut from its graph.

        carried: None at a conversation's beginning. Of the batch's frames, those of the result are counted from start.
        """
        raise NotImplementedError

    @property
    def lead_frames(self) -> int:
        """Last frames of a piece that the next one reads before its own: one, and as many as codes are delayed by."""
        return 1

    def left_of(self, carried: Any) -> Left:
        """What `read_part` left, as `Left`."""
        raise NotImplementedError

    def carried_from(self, left: Left) -> Any:
        """Back from `left_of`: what `read_part` goes on from."""
        raise NotImplementedError

    @property
    def codes_per_frame(self) -> int:
        """Codes whose loss one frame adds."""
        raise NotImplementedError

    def read_whole(self, batch: FrameBatch) -> ReadFrames:
        """For validation: the whole batch, read in the segments of the training to hold less at once."""
        segments = self.segments(batch)
        return self.read(batch, 1.0) if len(segments) == 1 else self.joined(batch, segments, carries=True)

    def joined(self, batch: FrameBatch, segments: list[tuple[int, int]], *, carries: bool) -> ReadFrames:
        """The segments one after the other; without what the one before left where nothing is carried."""
        parts: list[ReadFrames] = []
        carried: Any = None
        for start, end in segments:
            part, left = self.read_part(batch, start, end, carried, 1.0)
            carried = left if carries else None
            parts.append(part)
        return ReadFrames(
            hidden=torch.cat([part.hidden for part in parts], dim=1),
            text_logits=torch.cat([part.text_logits for part in parts], dim=1),
            text=torch.cat([part.text for part in parts], dim=1),
            codes=self.whole_codes(batch),
        )

    def whole_codes(self, batch: FrameBatch) -> Tensor:
        """`ReadFrames.codes` of the whole batch."""
        raise NotImplementedError

    def audio_loss_sum(self, read: ReadFrames, frames: Tensor) -> tuple[Tensor, int]:
        """Nats of the codes of (N, 2) frames (conversation and frame), summed, and how many codes those are."""
        raise NotImplementedError

    # Training

    def backward_conversations(
        self, batch: FrameBatch, left: Left | None, carries: bool
    ) -> tuple[dict[str, float], Left]:
        """Gradients of a batch's text loss and of the audio loss of frames drawn by seed and step."""
        segments = self.segments(batch)
        if carries:
            return self._backward_piece(batch, left)
        if len(segments) > 1:
            return self._backward_segments(batch, segments)[0], {}
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
        logged = {
            names.TRAIN_LOSS: float(loss.detach()),
            names.TRAIN_TEXT_LOSS: float(parts.token_nats.mean()),
            spoken_names.TRAIN_AUDIO_LOSS: float(audio.detach()),
        }
        return logged, {}

    def _backward_piece(self, batch: FrameBatch, left: Left | None) -> tuple[dict[str, float], Left]:
        """Of one piece, behind the last frames of the one before, which are read into its first and not learned."""
        codes, lead = with_lead(batch.codes, left)
        behind = replace(batch, codes=codes, lengths=batch.lengths + lead)
        segments = [(start + lead, end + lead) for start, end in self.segments(batch)]
        carried = None if left is None else self.carried_from(left)
        logged, carried = self._backward_segments(behind, segments, carried, lead)
        return logged, {"lead": codes[:, :, -self.lead_frames :].clone(), **self.left_of(carried)}

    def segments(self, batch: FrameBatch, length: int | None = None) -> list[tuple[int, int]]:
        """[start, end) of what is read with one graph, or of pieces of that length."""
        frames = batch.codes.shape[2]
        length = length or self.plan.segment_positions or frames
        return [(start, min(start + length, frames)) for start in range(0, frames, length)]

    def _backward_segments(
        self, batch: FrameBatch, segments: list[tuple[int, int]], carried: Any = None, lead: int = 0
    ) -> tuple[dict[str, float], Any]:
        """As a whole batch's gradients, those of one segment after the other, each graph freed before the next.

        carried: what lies before the first segment left, which begins behind `lead` frames; given last: what the last
        segment leaves.
        """
        is_real, drawn = batch.is_real(), self._drawn_frames(batch)
        targets = batch.codes[:, 0]
        weights = self._text_weights(targets, batch) * is_real
        sees_all = torch.ones_like(is_real)
        sees_all[:, :lead] = False
        for start, _ in segments if lead else segments[1:]:
            sees_all[:, start : start + self.blind_frames] = False
        weights = weights * sees_all
        drawn = drawn[sees_all.cpu()[drawn[:, 0], drawn[:, 1]]]
        expected_codes = max(1, len(drawn) * self.codes_per_frame)
        text_total, text_frames, loss_total, audio_total, codes = 0.0, 0, 0.0, 0.0, 0
        for start, end in segments:
            read, carried = self.read_part(batch, start, end, carried, self.inner_step_size_share())
            learned = (is_real & sees_all)[:, start:end]
            logits, own = read.text_logits[learned], read.text[learned]
            losses = functional.cross_entropy(logits.float(), own, reduction="none")
            loss = (losses * weights[:, start:end][learned]).sum() / weights.sum().clamp_min(1e-9)
            frames = drawn[(drawn[:, 1] >= start) & (drawn[:, 1] < end)] - torch.tensor([0, start])
            audio, own_codes = self.audio_loss_sum(read, frames)
            loss = loss + self.plan.speech_weight * audio / expected_codes
            self.manual_backward(loss)
            with torch.no_grad():
                nats = text_parts(logits, own, self.no_text_id).token_nats
            text_total, text_frames = text_total + float(nats.sum()), text_frames + len(nats)
            loss_total, audio_total = loss_total + float(loss.detach()), audio_total + float(audio.detach())
            codes += own_codes
        logged = {
            names.TRAIN_LOSS: loss_total,
            names.TRAIN_TEXT_LOSS: text_total / max(1, text_frames),
            spoken_names.TRAIN_AUDIO_LOSS: audio_total / max(1, codes),
        }
        return logged, carried

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
        if self.forgets_every is None:
            read = self.read_whole(batch)
        else:
            read = self.joined(batch, self.segments(batch, self.forgets_every), carries=False)
        for sample, facts in enumerate(batch.asked_facts):
            length = int(batch.lengths[sample])
            logits, targets = read.text_logits[sample, :length], read.text[sample, :length]
            parts = text_parts(logits, targets, self.no_text_id)
            frames = (targets != self.no_text_id).nonzero().flatten()
            self.scores.add_text(frames, batch.label_seconds[sample], parts.token_nats, parts.is_top, facts)
            self.scores.add_mean(spoken_names.VALIDATION_TIMING_LOSS, float(parts.timing_nats.double().sum()), length)
            self._score_speech(read, sample, batch.spoken[sample])

    def _score_speech(self, read: ReadFrames, sample: int, frames: Tensor) -> None:
        """Of frames (F,) of a conversation, those of one bucket of positions and one of seconds at a time."""
        seconds = (frames / FRAME_RATE_HZ).long()
        by_place = torch.bucketize(frames, torch.tensor(self.evaluation.position_edges), right=True)
        by_time = torch.bucketize(seconds, torch.tensor(self.evaluation.seconds_edges), right=True)
        cells = torch.stack([by_place, by_time])
        for cell in cells.unique(dim=1).T:
            inside = (cells == cell[:, None]).all(dim=0)
            own = frames[inside]
            total, codes = self.audio_loss_sum(read, torch.stack([torch.full_like(own, sample), own], dim=1))
            self.scores.add_speech(int(own[0]), int(seconds[inside][0]), float(total), codes)
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
