"""What the batches of every backbone have in common."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from experiments.data.conversations import Conversation
from experiments.data.packing import PackedConversation, Recall


@dataclass(frozen=True)
class AskedFact:
    """A fact value that the assistant is asked for.

    positions: (tokens,) positions of the value's tokens. distance: positions back to where it was last mentioned.
    seconds: from the end of the turn that mentioned it last to the start of the answer.
    """

    positions: Tensor
    distance: int
    seconds: float


def asked_facts(recalls: Iterable[Recall]) -> list[AskedFact]:
    """What is asked for in one conversation."""
    return [
        AskedFact(
            positions=torch.tensor(recall.value_positions),
            distance=recall.distance_to_last_mention,
            seconds=recall.seconds_since_last_mention,
        )
        for recall in recalls
    ]


def label_seconds(conversation: Conversation, packed: PackedConversation) -> Tensor:
    """(labels,) when the turn of each label begins; they are those of the assistant's turns, every second one."""
    starts = [turn.start_s for turn in conversation.turns[1::2]][: len(packed.spoken_turns)]
    lengths = [turn.end - turn.start for turn in packed.spoken_turns]
    return torch.tensor(starts).repeat_interleave(torch.tensor(lengths))


def padded(rows: list[Tensor], value: int | bool) -> Tensor:
    """(B, N) of rows (N or fewer,), filled up at their ends."""
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)
