"""An interpolated n-gram model of symbols: the held-out model that perplexity along a stream is taken under.

V symbols, 0 to V - 1; N symbols of a stream. Witten-Bell: p(w | h) = (c(h, w) + T(h) p(w | h')) / (c(h) + T(h)), with c
the counts, T(h) the different symbols seen after h, h' the history without its oldest symbol; below one symbol 1 / V.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Symbols = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Order:
    """Counts of one length: sorted codes (G,) of n-grams with their counts, and of histories with theirs and T."""

    grams: Symbols
    gram_counts: NDArray[np.float64]
    histories: Symbols
    history_counts: NDArray[np.float64]
    followers: NDArray[np.float64]


class NgramModel:
    """Surprise at every symbol of a stream given the `order - 1` before it. Build with `fit`."""

    def __init__(self, vocabulary_size: int, orders: tuple[_Order, ...], unigram: NDArray[np.float64]) -> None:
        self.vocabulary_size = vocabulary_size
        self._orders = orders
        self.unigram = unigram
        """(V,) shares of the symbols in what was fitted."""

    @property
    def order(self) -> int:
        return len(self._orders)

    @classmethod
    def fit(cls, sequences: Iterable[Symbols], vocabulary_size: int, order: int = 3) -> NgramModel:
        """Counts of whole sequences, each (N,), whose n-grams do not reach from one into the next.

        ValueError for an empty corpus, a symbol outside the vocabulary, and an order whose n-grams have more codes than
        64 bits hold.
        """
        if order < 1 or vocabulary_size < 2 or float(vocabulary_size) ** order >= 2.0**62:
            raise ValueError(
                f"an n-gram model needs order >= 1, two symbols or more and vocabulary_size ** order below 2 ** 62; "
                f"got order {order} over {vocabulary_size} symbols"
            )
        corpus = [checked_symbols(sequence, vocabulary_size) for sequence in sequences]
        corpus = [sequence for sequence in corpus if len(sequence)]
        if not corpus:
            raise ValueError("no symbols to fit an n-gram model on; give at least one sequence that is not empty")
        orders = tuple(_counted(corpus, vocabulary_size, length) for length in range(1, order + 1))
        unigram = np.bincount(np.concatenate(corpus), minlength=vocabulary_size).astype(np.float64)
        return cls(vocabulary_size, orders, unigram / unigram.sum())

    def surprise_nats(self, symbols: Symbols, before: Symbols | None = None) -> NDArray[np.float64]:
        """-log p of every symbol (N,), given those before it and `before`, which went before all of them.

        The first symbols of a stream have shorter histories. ValueError for a symbol outside the vocabulary.
        """
        checked = checked_symbols(symbols, self.vocabulary_size)
        past = np.zeros(0, np.int64) if before is None else checked_symbols(before, self.vocabulary_size)
        past = past[max(0, len(past) - self.order + 1) :]
        joined = np.concatenate([past, checked])
        chance = np.full(len(joined), 1.0 / self.vocabulary_size)
        for length, order in enumerate(self._orders, start=1):
            if len(joined) < length:
                break
            codes = ngram_codes(joined, length, self.vocabulary_size)
            history = codes // self.vocabulary_size
            seen, after = _found(order.histories, order.history_counts, order.followers, history)
            counts = _found(order.grams, order.gram_counts, order.gram_counts, codes)[0]
            longer = chance[length - 1 :]
            known = seen > 0
            longer[known] = (counts[known] + after[known] * longer[known]) / (seen[known] + after[known])
        return -np.log(chance[len(past) :])


def checked_symbols(symbols: Symbols, vocabulary_size: int) -> Symbols:
    """(N,) int64. ValueError for other shapes, for what are no whole numbers, and outside 0 to V - 1."""
    values = np.asarray(symbols)
    if values.ndim != 1 or (values.size and not np.issubdtype(values.dtype, np.integer)):
        raise ValueError(f"symbols must be one sequence of whole numbers, got {values.dtype} {values.shape}")
    if values.size and (values.min() < 0 or values.max() >= vocabulary_size):
        raise ValueError(
            f"symbols must lie in 0-{vocabulary_size - 1}, got {values.min()}-{values.max()}; "
            "use the model that was fitted on this vocabulary"
        )
    return values.astype(np.int64)


def ngram_codes(symbols: Symbols, length: int, vocabulary_size: int) -> Symbols:
    """A number for each n-gram of this length, (N - length + 1,), the oldest symbol leading."""
    codes = np.zeros(len(symbols) - length + 1, np.int64)
    for place in range(length):
        codes = codes * vocabulary_size + symbols[place : place + len(codes)]
    return codes


def _counted(corpus: list[Symbols], vocabulary_size: int, length: int) -> _Order:
    codes = np.concatenate(
        [ngram_codes(s, length, vocabulary_size) for s in corpus if len(s) >= length] or [np.zeros(0, int)]
    )
    grams, gram_counts = np.unique(codes, return_counts=True)
    histories, where, followers = np.unique(grams // vocabulary_size, return_inverse=True, return_counts=True)
    return _Order(
        grams=grams,
        gram_counts=gram_counts.astype(np.float64),
        histories=histories,
        history_counts=np.bincount(where, weights=gram_counts, minlength=len(histories)).astype(np.float64),
        followers=followers.astype(np.float64),
    )


def _found(
    codes: Symbols, first: NDArray[np.float64], second: NDArray[np.float64], wanted: Symbols
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What `first` and `second` hold for the wanted codes; 0 where a code was never seen."""
    if not len(codes):
        return np.zeros(len(wanted)), np.zeros(len(wanted))
    places = np.minimum(np.searchsorted(codes, wanted), len(codes) - 1)
    known = codes[places] == wanted
    return np.where(known, first[places], 0.0), np.where(known, second[places], 0.0)
