"""Conversations as batches for a model that reads: the user's transcript and the assistant's text, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from experiments.data.dataset import ConversationSet
from experiments.data.packing import IGNORED_LABEL, PackedConversation, pack_transcript
from experiments.spoken.batches import AskedFact, asked_facts, label_seconds, padded
from experiments.spoken.qwen_tts.configuration import QwenExperiment


@dataclass(frozen=True)
class TranscriptBatch:
    """B conversations of up to T tokens, right-padded; a position is a token.

    input_ids, labels (B, T) int64; attention_mask (B, T) bool; lengths (B,) real positions. asked_facts: per
    conversation. label_seconds: per conversation (labels,), when the turn of each label begins.
    """

    input_ids: Tensor
    labels: Tensor
    attention_mask: Tensor
    lengths: Tensor
    asked_facts: list[list[AskedFact]]
    label_seconds: list[Tensor]

    @property
    def positions(self) -> int:
        """Real positions of all conversations together."""
        return int(self.lengths.sum())

    def to(self, device: torch.device) -> TranscriptBatch:
        return TranscriptBatch(
            input_ids=self.input_ids.to(device),
            labels=self.labels.to(device),
            attention_mask=self.attention_mask.to(device),
            lengths=self.lengths.to(device),
            asked_facts=self.asked_facts,
            label_seconds=self.label_seconds,
        )


class QwenLoader:
    """Conversations of a set as batches, always whole."""

    def __init__(self, model: PreTrainedModel, config: QwenExperiment) -> None:
        """Takes what every backbone's loader takes; a transcript needs nothing of the model."""

    def batch(self, dataset: ConversationSet, indices: Sequence[int]) -> TranscriptBatch:
        """The given conversations, right-padded."""
        conversations = [dataset[index] for index in indices]
        packed = [pack_transcript(conversation, dataset, mini_batch_size=1) for conversation in conversations]
        lengths = torch.tensor([one.length for one in packed])
        return TranscriptBatch(
            input_ids=padded([one.input_ids for one in packed], dataset.tokenizer.pad_id),
            labels=padded([one.labels for one in packed], IGNORED_LABEL),
            attention_mask=torch.arange(int(lengths.max())) < lengths[:, None],
            lengths=lengths,
            asked_facts=[asked_facts(one.recalls) for one in packed],
            label_seconds=[label_seconds(*pair) for pair in zip(conversations, packed, strict=True)],
        )

    def packed(self, dataset: ConversationSet, index: int) -> PackedConversation:
        """One conversation of the set in positions."""
        return pack_transcript(dataset[index], dataset, mini_batch_size=1)

    def longest(self, dataset: ConversationSet) -> int:
        """Tokens of the longest validation conversation."""
        return max(self.packed(dataset, index).length for index in dataset.split_indices("validation"))
