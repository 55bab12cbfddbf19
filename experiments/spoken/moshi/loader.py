"""Conversations as batches for Moshi: codes of every stream, frame by frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from moshi.models.lm import LMModel
from torch import Tensor

from experiments.data.dataset import ConversationSet
from experiments.data.framing import UNITS_PER_FRAME, FramedConversation, frame_conversation
from experiments.spoken.batches import AskedFact
from experiments.spoken.moshi.configuration import MoshiExperiment


@dataclass(frozen=True)
class MoshiBatch:
    """B conversations of up to T frames, right-padded. Positions are frames.

    codes (B, 1 + n_q, T) int64: text, units said, units heard; -1 in codebooks that the data has no units for, and in
    padding. lengths: (B,) real frames. spoken: per conversation (F,), the first frames in which the assistant speaks.
    asked_facts: per conversation. label_seconds: per conversation (tokens,), when the turn of each text token begins.
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

    def to(self, device: torch.device) -> MoshiBatch:
        return MoshiBatch(
            codes=self.codes.to(device),
            lengths=self.lengths.to(device),
            spoken=self.spoken,
            asked_facts=self.asked_facts,
            label_seconds=self.label_seconds,
        )


class MoshiLoader:
    """Conversations of a set as batches, always whole.

    Where codes come from is decided in `framed` and `codes_of` alone: codes of a trained Mimi would come in there.
    """

    def __init__(self, model: LMModel, config: MoshiExperiment) -> None:
        self._model = model
        self._speech_turns = config.evaluation.speech_turns

    def batch(self, dataset: ConversationSet, indices: Sequence[int]) -> MoshiBatch:
        """The given conversations, right-padded."""
        framed = [self.framed(dataset, index) for index in indices]
        longest = max(len(one) for one in framed)
        codes = torch.full((len(framed), self._model.num_codebooks, longest), self._model.zero_token_id)
        for row, one in enumerate(framed):
            codes[row, :, : len(one)] = self.codes_of(one)
        return MoshiBatch(
            codes=codes,
            lengths=torch.tensor([len(one) for one in framed]),
            spoken=[_spoken_frames(one, self._speech_turns) for one in framed],
            asked_facts=[_asked_facts(one) for one in framed],
            label_seconds=[one.label_seconds() for one in framed],
        )

    def framed(self, dataset: ConversationSet, index: int) -> FramedConversation:
        """A conversation of the set in frames."""
        return frame_conversation(dataset[index], dataset, self._model.text_padding_token_id)

    def codes_of(self, framed: FramedConversation) -> Tensor:
        """(1 + n_q, T): every stream of a conversation. Codebooks beyond a frame's units give the model nothing."""
        model = self._model
        codes = torch.full((model.num_codebooks, len(framed)), model.zero_token_id)
        codes[0] = framed.text
        for first, units in ((model.audio_offset, framed.own), (model.audio_offset + model.dep_q, framed.heard)):
            codes[first : first + UNITS_PER_FRAME] = units.T
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
