"""Batches whose rows go on from step to step, so that a state can be carried along a conversation of any length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from experiments.data.conversations import Split
from experiments.recordings.curriculum import PieceSet
from experiments.recordings.set_files import LISTENING_ID


class PieceLoader(Protocol):
    """What every backbone's loader in `experiments.spoken` does."""

    def batch(self, dataset: Any, indices: Sequence[int]) -> Any:
        """The given conversations as one batch."""
        ...


@dataclass(frozen=True, kw_only=True)
class CarriedStep:
    """What one step reads. indices: a piece for each row. begins: (rows,) bool, True where the state starts anew."""

    indices: tuple[int, ...]
    begins: Tensor


class CarriedOrder:
    """Which pieces each step reads: every row reads a conversation to its end, then the next one. Endless.

    The step's number alone decides, so any step can be resumed. Conversations are shuffled anew in every pass.
    most_pieces: after so many of a conversation the state begins anew, and what is left of it is read as another one.
    """

    def __init__(
        self, pieces: PieceSet, rows: int, seed: int, split: Split = "train", most_pieces: int | None = None
    ) -> None:
        self._chains = [
            chain[start : start + (most_pieces or len(chain))]
            for chain in pieces.chains(split)
            for start in range(0, len(chain), most_pieces or len(chain))
        ]
        if rows < 1 or not self._chains:
            raise ValueError(f"{len(self._chains)} {split} conversations for {rows} rows; give at least one of both")
        self._seed = seed
        self._rows: list[list[tuple[int, bool]]] = [[] for _ in range(rows)]
        self._coming = self._endless()

    def step(self, number: int) -> CarriedStep:
        """Of the step, counted from 0."""
        while min(len(row) for row in self._rows) <= number:
            shortest = min(self._rows, key=len)
            shortest += [(index, place == 0) for place, index in enumerate(next(self._coming))]
        read = [row[number] for row in self._rows]
        return CarriedStep(
            indices=tuple(index for index, _ in read), begins=torch.tensor([begins for _, begins in read])
        )

    def _endless(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self._seed)
        while True:
            for place in torch.randperm(len(self._chains), generator=generator).tolist():
                yield self._chains[place]


@dataclass(frozen=True, kw_only=True)
class CarriedBatch:
    """batch: as the backbone's loader makes it. begins: (rows,) bool, True where the row's state starts anew."""

    step: int
    batch: Any
    begins: Tensor


def carried_batches(
    loader: PieceLoader, pieces: PieceSet, *, rows: int, seed: int = 0, first_step: int = 0
) -> Iterator[CarriedBatch]:
    """Training batches from a step on, without end: row r of a batch goes on where row r of the one before ended."""
    order = CarriedOrder(pieces, rows, seed)
    number = first_step
    while True:
        read = order.step(number)
        yield CarriedBatch(step=number, batch=loader.batch(pieces, read.indices), begins=read.begins)
        number += 1


class RecordedCodes:
    """The codes that a set was prepared with, for `experiments.spoken.frame_batches.FrameLoader(codes_of=...)`.

    Their silence is what the set's Mimi makes of it; (Q,) int64.
    """

    def __init__(self, pieces: PieceSet) -> None:
        self._pool = pieces.pool
        self.silence = self._pool.silent_codes()

    def of(self, utterance_id: str) -> Tensor:
        """(frames, Q) int64."""
        if utterance_id == LISTENING_ID:
            return self.silence[None]
        return self._pool.codes(utterance_id)
