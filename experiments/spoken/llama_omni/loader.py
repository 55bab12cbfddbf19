"""Conversations as batches for Llama-Omni: markers and text tokens, and encoder frames where speech stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from backbones.llama_omni import IGNORED_LABEL, LlamaOmni, SpeechFrames, SpokenTurn
from experiments.data.conversations import Conversation
from experiments.data.dataset import ConversationSet
from experiments.data.packing import PackedConversation, pack
from experiments.spoken.batches import AskedFact, asked_facts, label_seconds, padded
from experiments.spoken.llama_omni.configuration import LlamaOmniExperiment
from experiments.spoken.recorded_plan import RecordedPlan


@dataclass(frozen=True)
class LlamaOmniBatch:
    """B conversations of up to N tokens, right-padded; T positions once speech stands in place of each -200.

    input_ids, labels (B, N) int64; attention_mask (B, N) bool. speech: encoder frames of every segment in reading
    order, all conversations in a row. spoken_turns, asked_facts: per conversation, in spliced positions.
    label_seconds: per conversation (labels,), when the turn of each label begins. lengths: (B,) real spliced positions.
    """

    input_ids: Tensor
    labels: Tensor
    attention_mask: Tensor
    speech: SpeechFrames
    spoken_turns: list[list[SpokenTurn]]
    asked_facts: list[list[AskedFact]]
    label_seconds: list[Tensor]
    lengths: Tensor

    @property
    def positions(self) -> int:
        """Real positions of all conversations together."""
        return int(self.lengths.sum())

    def to(self, device: torch.device) -> LlamaOmniBatch:
        return LlamaOmniBatch(
            input_ids=self.input_ids.to(device),
            labels=self.labels.to(device),
            attention_mask=self.attention_mask.to(device),
            speech=self.speech.to(device),
            spoken_turns=self.spoken_turns,
            asked_facts=self.asked_facts,
            label_seconds=self.label_seconds,
            lengths=self.lengths.to(device),
        )


MOST_ENCODED_BYTES = 512 << 20
"""Of encoder frames that are kept: all of synthetic conversations, and of recordings the last ones read."""


class EncodedUtterances:
    """Encoder frames by utterance. The encoder is frozen, so an utterance that is kept needs it only once.

    most_bytes: beyond it the frames that were asked for the longest ago are forgotten.
    """

    def __init__(self, model: LlamaOmni, most_bytes: int = MOST_ENCODED_BYTES) -> None:
        self._model = model
        self._most_bytes = most_bytes
        self._bytes = 0
        self._frames: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def frames(self, dataset: ConversationSet, utterance_ids: list[str]) -> SpeechFrames:
        """Frames of the utterances in the given order, on the CPU."""
        missing = [utterance for utterance in dict.fromkeys(utterance_ids) if utterance not in self._frames]
        if missing:
            encoded = self._model.encode_speech([dataset.pool.mel(utterance) for utterance in missing])
            self._frames |= {u: f.cpu().clone() for u, f in zip(missing, encoded.segments, strict=True)}
            self._bytes += sum(self._frames[utterance].nbytes for utterance in missing)
        asked = {utterance: self._frames.pop(utterance) for utterance in dict.fromkeys(utterance_ids)}
        self._frames |= asked  # to the end: the first of them are forgotten first
        while self._bytes > self._most_bytes and len(self._frames) > len(asked):
            self._bytes -= self._frames.pop(next(iter(self._frames))).nbytes
        return SpeechFrames(tuple(asked[utterance] for utterance in utterance_ids))


class LlamaOmniLoader:
    """Conversations of a set as batches, whole mini-batches of the largest size among the arms.

    So every arm is given exactly the same conversations.
    """

    def __init__(self, model: LlamaOmni, config: LlamaOmniExperiment) -> None:
        self._model = model
        self._mini_batch_size = max(row.ttt.mini_batch_size if row.ttt else 1 for row in config.arms)
        if isinstance(config.data, RecordedPlan):
            self._mini_batch_size = 1  # the next piece goes on directly behind the last real position
        self.encoded = EncodedUtterances(model)

    def batch(self, dataset: ConversationSet, indices: Sequence[int]) -> LlamaOmniBatch:
        """The given conversations, right-padded."""
        conversations = [dataset[index] for index in indices]
        packed = [self._pack(dataset, conversation) for conversation in conversations]
        speech_ids = [utterance for one in packed for utterance in one.speech_segments]
        return LlamaOmniBatch(
            input_ids=padded([one.input_ids for one in packed], dataset.tokenizer.pad_id),
            labels=padded([one.labels for one in packed], IGNORED_LABEL),
            attention_mask=padded([_is_real(one) for one in packed], False),
            speech=self.encoded.frames(dataset, speech_ids),
            spoken_turns=[
                [SpokenTurn(start=turn.start, end=turn.end, units=turn.units) for turn in one.spoken_turns]
                for one in packed
            ],
            asked_facts=[asked_facts(one.recalls) for one in packed],
            label_seconds=[label_seconds(*pair) for pair in zip(conversations, packed, strict=True)],
            lengths=torch.tensor([one.length - one.pad_count for one in packed]),
        )

    def packed(self, dataset: ConversationSet, index: int) -> PackedConversation:
        return self._pack(dataset, dataset[index])

    def longest(self, dataset: ConversationSet) -> int:
        """Positions that conversations of the set are drawn to fill."""
        return dataset.spec.positions

    def _pack(self, dataset: ConversationSet, conversation: Conversation) -> PackedConversation:
        return pack(conversation, dataset, self._model.speech_positions, self._mini_batch_size)


def _is_real(packed: PackedConversation) -> torch.Tensor:
    """(N,) bool: False where the packer filled up to whole mini-batches, which our layers need not."""
    is_real = torch.ones_like(packed.input_ids, dtype=torch.bool)
    is_real[len(is_real) - packed.pad_count :] = False
    return is_real
