"""What every set of conversations has: a pool of utterances, splits, and conversations that are read when asked for."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from backbones.speech import UnitCodebook
from experiments.data.conversations import Conversation, Split
from experiments.data.tokenizer import ConversationTokenizer


class PooledConversations:
    """Conversations in order, of both splits. pool: their utterances, with the tokenizer and the codebook of all.

    A child gives `split_indices`, `__len__` and `__getitem__`.
    """

    def __init__(self, pool: Any) -> None:
        self.pool = pool

    @property
    def tokenizer(self) -> ConversationTokenizer:
        return self.pool.tokenizer

    @property
    def codebook(self) -> UnitCodebook:
        return self.pool.codebook

    def split_indices(self, split: Split) -> list[int]:
        """Indices of the conversations of one split."""
        raise NotImplementedError

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> Conversation:
        raise NotImplementedError

    def __iter__(self) -> Iterator[Any]:
        return (self[index] for index in range(len(self)))


class ConversationLines(PooledConversations):
    """Conversations that are lines of one JSON file: where each begins is remembered, and nothing else of it.

    split_of: (number of the line, the line) -> its split, or None where it is left out. A child's `__getitem__` makes
    a conversation of a `row`.
    """

    def __init__(self, path: Path, pool: Any, split_of: Callable[[int, bytes], Split | None]) -> None:
        super().__init__(pool)
        self._path = path
        self._line_starts: list[int] = []
        self._split_indices: dict[Split, list[int]] = {"train": [], "validation": []}
        start = 0
        with path.open("rb") as file:
            for number, line in enumerate(file):
                split = split_of(number, line)
                if split is not None:
                    self._split_indices[split].append(len(self._line_starts))
                    self._line_starts.append(start)
                start += len(line)

    def split_indices(self, split: Split) -> list[int]:
        return list(self._split_indices[split])

    def __len__(self) -> int:
        return len(self._line_starts)

    def row(self, index: int) -> dict[str, Any]:
        """The line of a conversation, read."""
        if not 0 <= index < len(self):
            raise IndexError(f"conversation {index} of {len(self)}")
        with self._path.open("rb") as file:
            file.seek(self._line_starts[index])
            return json.loads(file.readline())
