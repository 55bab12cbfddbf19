"""What one training or validation step reads."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from backbones.llama_omni import SpeechFrames, SpokenTurn


@dataclass(frozen=True)
class AskedFact:
    """A fact value that the assistant is asked for.

    positions: (tokens,) spliced positions of the value's tokens. distance: positions back to where it was last stated.
    """

    positions: Tensor
    distance: int


@dataclass(frozen=True)
class ConversationBatch:
    """B conversations of up to N tokens, right-padded; T positions once speech stands in place of each -200.

    input_ids, labels (B, N) int64; attention_mask (B, N) bool. speech: encoder frames of every segment in reading
    order, all conversations in a row. spoken_turns, asked_facts: per conversation, in spliced positions.
    lengths: (B,) real spliced positions.
    """

    input_ids: Tensor
    labels: Tensor
    attention_mask: Tensor
    speech: SpeechFrames
    spoken_turns: list[list[SpokenTurn]]
    asked_facts: list[list[AskedFact]]
    lengths: Tensor

    @property
    def positions(self) -> int:
        """Real positions of all conversations together."""
        return int(self.lengths.sum())

    def to(self, device: torch.device) -> ConversationBatch:
        return ConversationBatch(
            input_ids=self.input_ids.to(device),
            labels=self.labels.to(device),
            attention_mask=self.attention_mask.to(device),
            speech=self.speech.to(device),
            spoken_turns=self.spoken_turns,
            asked_facts=self.asked_facts,
            lengths=self.lengths.to(device),
        )
