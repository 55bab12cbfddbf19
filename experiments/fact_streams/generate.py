"""Draws fact streams, many at once: one loop over positions, all streams of a batch in numpy arrays.

Legend: N streams, T positions, K keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from experiments.fact_streams.spec import ASK, FIRST_HEARD_VALUE, SILENCE, SUCCESSOR_SHARES, FactStreamSpec

Ints = NDArray[numpy.int64]
Flags = NDArray[numpy.bool_]
NEVER = numpy.iinfo(numpy.int64).max


@dataclass(frozen=True, kw_only=True)
class FactStreams:
    """N streams of T positions.

    codes: (N, 3, T) int64: text, heard keys, heard values; in a speech model's order, text first.
    distances: (N, T) int64: where the text is an answer, positions back to its statement; 0 where it is a word.
    """

    codes: Tensor
    distances: Tensor

    @property
    def text(self) -> Tensor:
        """(N, T)"""
        return self.codes[:, 0]

    @property
    def is_answer(self) -> Tensor:
        """(N, T) bool: False where the text is a word."""
        return self.distances > 0

    def __len__(self) -> int:
        return self.codes.shape[0]

    def rows(self, first: int, end: int) -> FactStreams:
        return FactStreams(codes=self.codes[first:end], distances=self.distances[first:end])


class _Drawing:
    """All streams at one position: the last words, and which facts wait for their questions."""

    def __init__(self, spec: FactStreamSpec, streams: int, generator: numpy.random.Generator) -> None:
        self.spec = spec
        self.generator = generator
        self.rows = numpy.arange(streams)
        self.before = generator.integers(spec.words, size=(2, streams))
        self.due = numpy.full((streams, spec.keys), NEVER)  # (N, K) earliest position of the question; NEVER: no fact
        self.value = numpy.zeros((streams, spec.keys), dtype=numpy.int64)
        self.stated_at = numpy.zeros((streams, spec.keys), dtype=numpy.int64)
        self.asked_key = numpy.zeros(streams, dtype=numpy.int64)
        self.answers_now = numpy.zeros(streams, dtype=bool)

    def position(self, t: int) -> tuple[Ints, Ints]:
        """Codes (3, N) and distances (N,) of position t."""
        text, distances = self._text(t)
        wanted = self.generator.random(self.rows.size) < self.spec.event_share
        first_due = self.due.argmin(axis=1)
        asks = wanted & (self.due[self.rows, first_due] <= t)
        states, stated_key = self._state(t, wanted & ~asks)
        self.due[self.rows[asks], first_due[asks]] = NEVER
        self.asked_key, self.answers_now = first_due, asks
        key = numpy.where(asks, first_due, stated_key)
        heard_key = numpy.where(asks | states, key + 1, SILENCE)
        heard_value = numpy.where(states, self.value[self.rows, stated_key] + FIRST_HEARD_VALUE, SILENCE)
        return numpy.stack([text, heard_key, numpy.where(asks, ASK, heard_value)]), distances

    def _text(self, t: int) -> tuple[Ints, Ints]:
        place = numpy.searchsorted(numpy.cumsum(SUCCESSOR_SHARES)[:-1], self.generator.random(self.rows.size))
        word = self.spec.successors[self.before[0], self.before[1], place]
        is_word = ~self.answers_now
        self.before[:, is_word] = numpy.stack([self.before[1], word])[:, is_word]
        answer = self.value[self.rows, self.asked_key] + self.spec.first_value
        distance = t - self.stated_at[self.rows, self.asked_key]
        return numpy.where(is_word, word, answer), numpy.where(is_word, 0, distance)

    def _state(self, t: int, wanted: Flags) -> tuple[Flags, Ints]:
        """Gives a free key a value, where one is wanted and free; and which key it was."""
        # A key whose question was just heard is answered at t + 1, with the value it has now.
        is_free = self.due == NEVER
        states = wanted & is_free.any(axis=1)
        key = numpy.where(is_free, self.generator.random(is_free.shape), -1.0).argmax(axis=1)
        low, high = numpy.log(self.spec.shortest_distance), numpy.log(self.spec.longest_distance)
        distance = numpy.exp(low + self.generator.random(self.rows.size) * (high - low)).astype(numpy.int64)
        rows = self.rows[states]
        self.value[rows, key[states]] = self.generator.integers(self.spec.values, size=self.rows.size)[states]
        self.stated_at[rows, key[states]] = t
        self.due[rows, key[states]] = (t + distance - 1)[states]  # the answer is one position after the question
        return states, key


def draw_streams(spec: FactStreamSpec, streams: int, positions: int, seed: Sequence[int]) -> FactStreams:
    """`streams` streams of `positions` positions; the same for the same seed (several numbers seed without collisions).

    Raises ValueError for less than one stream or position.
    """
    if streams < 1 or positions < 1:
        raise ValueError(f"at least one stream of one position must be drawn, got {streams} of {positions}")
    drawing = _Drawing(spec, streams, numpy.random.default_rng(list(seed)))
    codes, distances = zip(*(drawing.position(t) for t in range(positions)), strict=True)
    return FactStreams(
        codes=torch.from_numpy(numpy.stack(codes, axis=2).transpose(1, 0, 2).copy()),
        distances=torch.from_numpy(numpy.stack(distances, axis=1)),
    )
