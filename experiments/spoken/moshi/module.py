"""The LightningModule of Moshi: the next frame's text, and the units that the depth transformer says in it.

Shape letters: B conversations, T frames, K streams, C width, N frames drawn, D codebooks said.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from moshi.models.lm import LMModel
from torch import Tensor
from torch.nn import functional

from backbones.moshi import (
    attention_layers,
    delayed_sequence,
    lm_forward_with_states,
    set_inner_step_size,
    ttt_layers,
)
from experiments.data.framing import UNITS_PER_FRAME
from experiments.spoken.carried_rows import Left, left_of_states, states_left
from experiments.spoken.configuration import Arm, Trained
from experiments.spoken.frame_batches import FrameBatch
from experiments.spoken.frame_module import FrameModule, ReadFrames
from experiments.spoken.moshi.configuration import MoshiExperiment
from experiments.spoken.moshi.model import able_to_stream
from experiments.spoken.recorded_plan import RecordedPlan
from ttt_core import TTTState

DEPTH_PARTS = ("depformer", "depformer_in", "depformer_emb", "depformer_text_emb", "depformer_norms", "linears")
STREAMED_FRAMES = 256
"""Frames that a validation in segments streams in one call: its attention is that many rows by the ring's columns."""


class MoshiModule(FrameModule):
    """Trains and measures one arm."""

    model: LMModel

    def __init__(self, model: LMModel, config: MoshiExperiment, arm: Arm) -> None:
        super().__init__(model, config, config.training, model.text_padding_token_id)
        choose_trained(model, self.plan.trains, arm.upper_layers)
        self.upper_mixers = [model.transformer.layers[layer].self_attn for layer in arm.upper_layers]
        self._set_blind_frames(config)

    def read(self, batch: FrameBatch, inner_step_size_share: float) -> ReadFrames:
        """The streams as the model reads them, (B, K, T + 1): delayed, behind the initial tokens."""
        self._set_inner_step_size(inner_step_size_share)
        sequence = delayed_sequence(self.model, batch.codes)
        hidden, text_logits = self.model.forward_text(sequence[:, :, :-1])
        return ReadFrames(hidden=hidden, text_logits=text_logits[:, 0], text=sequence[:, 0, 1:], codes=sequence)

    def _set_blind_frames(self, config: MoshiExperiment) -> None:
        """What a segment's attention cannot see is what lies before it: TTT's state alone is carried.

        Of pieces of recordings, every arm leaves as many first frames out, so that all learn from the same ones.
        """
        segment = self.plan.segment_positions
        if segment is None:
            self.blind_frames = config.model.context if isinstance(config.data, RecordedPlan) else 0
            return
        contexts = {layer: attention.context for layer, attention in attention_layers(self.model).items()}
        unbounded = [layer for layer, context in contexts.items() if context is None]
        if unbounded or not ttt_layers(self.model):
            raise ValueError(
                "segment_positions carries TTT's state from segment to segment, and attention starts anew with each: "
                f"the arm needs TTT layers, and windows in all others; layers without one: {unbounded or 'none'}"
            )
        self.blind_frames = max(context or 0 for context in contexts.values())
        if segment <= self.blind_frames:
            raise ValueError(
                f"segment_positions is {segment}, and the first {self.blind_frames} frames of a segment see less than "
                "their window and are not learned from; give segments several times as long"
            )

    def read_part(
        self, batch: FrameBatch, start: int, end: int, carried: dict[int, TTTState] | None, inner_step_size_share: float
    ) -> tuple[ReadFrames, dict[int, TTTState]]:
        """TTT's states are carried; attention starts anew."""
        self._set_inner_step_size(inner_step_size_share)
        sequence = delayed_sequence(self.model, batch.codes)[:, :, start : end + 1]
        if ttt_layers(self.model):
            hidden, text_logits, states = lm_forward_with_states(self.model, sequence[:, :, :-1], carried or None)
        else:
            (hidden, text_logits), states = self.model.forward_text(sequence[:, :, :-1]), {}
        read = ReadFrames(hidden=hidden, text_logits=text_logits[:, 0], text=sequence[:, 0, 1:], codes=sequence)
        return read, {layer: state.detach() for layer, state in states.items()}

    def read_whole(self, batch: FrameBatch) -> ReadFrames:
        """Streamed where it is read in segments, as the model is used: rings hold what lies before a segment."""
        segments = self.segments(batch)
        if len(segments) == 1:
            return self.read(batch, 1.0)
        self._set_inner_step_size(1.0)
        sequence = self.whole_codes(batch)
        rows, frames = batch.codes.shape[0], batch.codes.shape[2]
        hidden, logits = [], []
        with able_to_stream(self.model, frames, STREAMED_FRAMES), self.model.streaming(rows):
            for start in range(0, frames, STREAMED_FRAMES):
                end = min(start + STREAMED_FRAMES, frames)
                part, text_logits = self.model.forward_text(sequence[:, :, start:end])
                hidden.append(part)
                logits.append(text_logits[:, 0])
        return ReadFrames(
            hidden=torch.cat(hidden, dim=1), text_logits=torch.cat(logits, dim=1), text=sequence[:, 0, 1:],
            codes=sequence,
        )  # fmt: skip

    def whole_codes(self, batch: FrameBatch) -> Tensor:
        return delayed_sequence(self.model, batch.codes)

    @property
    def lead_frames(self) -> int:
        return 1 + max(self.model.delays)

    def left_of(self, carried: dict[int, TTTState]) -> Left:
        return left_of_states(carried)

    def carried_from(self, left: Left) -> dict[int, TTTState]:
        return states_left(left, ttt_layers(self.model))

    @property
    def codes_per_frame(self) -> int:
        return UNITS_PER_FRAME

    def _set_inner_step_size(self, share: float) -> None:
        """During the inner warm-up, a smaller inner step size than the layers' own."""
        layers = ttt_layers(self.model)
        if not layers:
            return
        own = next(iter(layers.values())).config.resolved_base_lr
        set_inner_step_size(self.model, None if share == 1.0 else own * share)

    def audio_loss_sum(self, read: ReadFrames, frames: Tensor) -> tuple[Tensor, int]:
        """A codebook that is delayed is at a frame asked for an earlier frame's unit; where that one lies before the
        beginning, for nothing.
        """
        if not len(frames):
            return read.hidden.new_zeros(()), 0
        rows, steps = frames.to(read.hidden.device).unbind(dim=1)
        predicted = read.codes[rows, :, steps + 1]
        logits = self.model.forward_depformer_training(predicted.T[None], read.hidden[rows, steps][None])
        logits, first = logits[0, :UNITS_PER_FRAME], self.model.audio_offset
        targets = predicted[:, first : first + UNITS_PER_FRAME].T
        is_unit = (targets >= 0) & (targets < self.model.card)
        total = functional.cross_entropy(logits[is_unit].float(), targets[is_unit], reduction="sum")
        return total, int(is_unit.sum())


def choose_trained(model: LMModel, trains: Trained, upper_layers: Sequence[int]) -> None:
    """Lets the parameters that `trains` names require gradients, and no others."""
    if trains == "everything":
        return
    model.requires_grad_(False)
    for layer in upper_layers:
        model.transformer.layers[layer].self_attn.requires_grad_(True)
    for part in DEPTH_PARTS:
        model.get_submodule(part).requires_grad_(True)
