"""Conversations as batches for a backbone that reads a frame of 80 ms at a time: codes of every stream."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from experiments.data.dataset import ConversationSet
from experiments.data.framing import FrameCodes, FramedConversation, UnitFrames, frame_conversation
from experiments.spoken.batches import AskedFact


@dataclass(frozen=True, kw_only=True)
class StreamLayout:
    """How a model's streams lie: the text, then its codebooks said, then those heard.

    no_text_id: the text of a frame without a token. nothing_id: what stands in padding, and in codebooks for which the
    data has no codes.
    """

    no_text_id: int
    nothing_id: int
    said_codebooks: int
    heard_codebooks: int

    @property
    def streams(self) -> int:
        return 1 + self.said_codebooks + self.heard_codebooks


@dataclass(frozen=True)
class FrameBatch:
    """B conversations of up to T frames, right-padded. Positions are frames.

    codes (B, K, T) int64: text, codes said, codes heard. lengths: (B,) real frames. spoken: per conversation (F,), the
    first frames in which the assistant speaks. asked_facts: per conversation. label_seconds: per conversation
    (tokens,), when the turn of each text token begins.
    """

    codes: Tensor
    lengths: Tensor
    spoken: list[Tensor]
    asked_facts: list[list[AskedFact]]
    label_seconds: list[Tensor]

    @property
    def positions(self) -> int:
        """Real frames of all conversations together."""
        return int(self.lengths.sum())

    def is_real(self) -> Tensor:
        """(B, T) bool: False in padding."""
        return torch.arange(self.codes.shape[2], device=self.lengths.device) < self.lengths[:, None]

    def to(self, device: torch.device) -> FrameBatch:
        return replace(self, codes=self.codes.to(device), lengths=self.lengths.to(device))


class FrameLoader:
    """Conversations of a set as batches, always whole.

    codes_of: what the sounds of a set are in frames; its units where nothing else is given.
    """

    def __init__(
        self, layout: StreamLayout, speech_turns: int, codes_of: Callable[[ConversationSet], FrameCodes] = UnitFrames
    ) -> None:
        self.layout = layout
        self._speech_turns = speech_turns
        self._codes_of = codes_of

    def batch(self, dataset: ConversationSet, indices: Sequence[int]) -> FrameBatch:
        """The given conversations, right-padded."""
        framed = [self.framed(dataset, index) for index in indices]
        longest = max(len(one) for one in framed)
        codes = torch.full((len(framed), self.layout.streams, longest), self.layout.nothing_id)
        for row, one in enumerate(framed):
            codes[row, :, : len(one)] = self.codes_of(one)
        return FrameBatch(
            codes=codes,
            lengths=torch.tensor([len(one) for one in framed]),
            spoken=[_spoken_frames(one, self._speech_turns) for one in framed],
            asked_facts=[_asked_facts(one) for one in framed],
            label_seconds=[one.label_seconds() for one in framed],
        )

    def framed(self, dataset: ConversationSet, index: int) -> FramedConversation:
        """A conversation of the set in frames."""
        return frame_conversation(dataset[index], dataset, self.layout.no_text_id, self._codes_of(dataset))

    def codes_of(self, framed: FramedConversation) -> Tensor:
        """(K, T): every stream of a conversation."""
        codes = torch.full((self.layout.streams, len(framed)), self.layout.nothing_id)
        codes[0] = framed.text
        for first, sounds in ((1, framed.own), (1 + self.layout.said_codebooks, framed.heard)):
            codes[first : first + sounds.shape[1]] = sounds.T
        return codes

    def longest(self, dataset: ConversationSet) -> int:
        """Frames of the longest validation conversation."""
        return max(len(self.framed(dataset, index)) for index in dataset.split_indices("validation"))


def _spoken_frames(framed: FramedConversation, turns: int) -> Tensor:
    """(F,) frames in which the assistant's first few turns sound."""
    return torch.cat([torch.arange(turn.sound, turn.end) for turn in framed.turns[:turns]])


def _asked_facts(framed: FramedConversation) -> list[AskedFact]:
    return [
        AskedFact(
            positions=torch.tensor(recall.value_positions),
            distance=recall.distance_to_last_mention,
            seconds=recall.seconds_since_last_mention,
        )
        for recall in framed.recalls
    ]
