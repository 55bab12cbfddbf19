"""What a set of fact streams is made from, and what its tokens mean."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy
from numpy.typing import NDArray

SUCCESSOR_SHARES = (0.7, 0.2, 0.1)
"""Chances of the words that may follow two given words."""

SILENCE = 0
"""Code of both heard streams where nothing is heard."""

ASK = 1
"""Code of the second heard stream where the key beside it is asked for."""

FIRST_HEARD_VALUE = 2


@dataclass(frozen=True, kw_only=True)
class FactStreamSpec:
    """Three streams in step, as a full-duplex speech model has them: two that are heard and the text that is said.

    Text: a word at every position, which depends on the two words before it by a table drawn from `grammar_seed`. To
        predict it a model must look back two or three positions and never further.
    Heard: mostly silence. A *statement* is one position with a key in the first stream and a value in the second; a
        *question* is one with a key and ASK. The text of the next position is then not a word but the value last
        stated for that key. A key that waits for its question is not stated anew.

    words, keys, values: sizes of the three vocabularies; guessing a value is right once in `values`.
    event_share: chance that a statement or a question is heard at a position.
    shortest_distance, longest_distance: positions from a statement to its answer are drawn log-uniformly between
        these, and are then as much longer as the question has to wait for its turn.
    """

    words: int = 8
    keys: int = 16
    values: int = 16
    event_share: float = 0.3
    shortest_distance: int = 3
    longest_distance: int = 28
    grammar_seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("words", len(SUCCESSOR_SHARES)), ("keys", 1), ("values", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"FactStreamSpec.{name} must be at least {least}, got {getattr(self, name)}")
        if not 0 < self.event_share < 1:
            raise ValueError(f"FactStreamSpec.event_share must be between 0 and 1, got {self.event_share}")
        if not 2 <= self.shortest_distance < self.longest_distance:
            raise ValueError(
                "FactStreamSpec needs 2 <= shortest_distance < longest_distance (a question is heard one position "
                f"before its answer), got {self.shortest_distance} and {self.longest_distance}"
            )

    @property
    def first_value(self) -> int:
        """Text token of the first value; the words come before it."""
        return self.words

    @property
    def text_tokens(self) -> int:
        """Size of the text vocabulary."""
        return self.words + self.values

    @property
    def heard_codes(self) -> int:
        """Size of the vocabulary that both heard streams share."""
        return max(self.keys + 1, FIRST_HEARD_VALUE + self.values)

    @property
    def chance_recall(self) -> float:
        return 1.0 / self.values

    @property
    def word_entropy_nats(self) -> float:
        """Nats per word that no model can go below."""
        return -sum(share * math.log(share) for share in SUCCESSOR_SHARES)

    @cached_property
    def successors(self) -> NDArray[numpy.int64]:
        """(words, words, 3): the words that may follow two words, likeliest first."""
        generator = numpy.random.default_rng(self.grammar_seed)
        rows = [generator.permutation(self.words)[: len(SUCCESSOR_SHARES)] for _ in range(self.words**2)]
        return numpy.stack(rows).reshape(self.words, self.words, len(SUCCESSOR_SHARES))
