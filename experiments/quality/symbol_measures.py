"""What can be said of speech units or text tokens without a judge: surprise, repetition, compression, entropy."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from experiments.quality.ngram import NgramModel, Symbols, checked_symbols, ngram_codes
from experiments.quality.windows import SymbolBlock, Window, cut_symbols, finest_differences, measure_field

FEWEST_SYMBOLS = 8
"""Below so many in a window nothing is said of them but how many they are: their measures would be noise."""
GRAM = 4
LARGEST_VOCABULARY = 1 << 16
STEPS_COUNTED = 16


@dataclass(frozen=True, kw_only=True)
class SymbolWindow(Window):
    """One window of a stream of symbols.

    symbols_per_second. cross_entropy_nats: mean surprise under the held-out n-gram model. entropy_nats: of the
    window's own shares of symbols. distinct_4grams: different ones over all. compression_ratio: bytes at two a symbol
    over those that zlib leaves. repeated_share: of symbols that equal the one `lag` before, for the lag at which that
    share is largest. longest_repeat_share: of the longest run of such symbols at any one lag, over the window.
    """

    symbols_per_second: float = measure_field(0.2)
    cross_entropy_nats: float = measure_field(0.05)
    entropy_nats: float = measure_field(0.05)
    distinct_4grams: float = measure_field(0.01)
    compression_ratio: float = measure_field(0.05)
    repeated_share: float = measure_field(0.01)
    longest_repeat_share: float = measure_field(0.01)

    @property
    def perplexity(self) -> float:
        return math.exp(self.cross_entropy_nats)


def measure_symbols(
    blocks: Iterable[SymbolBlock], *, window_s: float, model: NgramModel, remembered_symbols: int = 1500
) -> Iterator[SymbolWindow]:
    """A record for every whole window, as the stream comes; any split into blocks gives the same records.

    remembered_symbols: before a window, in which repetitions are looked for too (1,500 are 30 s of 50 Hz units): all
    that is kept of the past. ValueError for a stream shorter than a window, fewer than two symbols in all, and symbols
    that the model does not know.
    """
    if remembered_symbols < 0 or model.vocabulary_size > LARGEST_VOCABULARY:
        raise ValueError(
            f"remembered_symbols is {remembered_symbols}, the vocabulary {model.vocabulary_size}; they must be at "
            f"least 0 and at most {LARGEST_VOCABULARY}"
        )
    past, count = np.zeros(0, np.int64), 0
    for start_s, end_s, symbols, _ in cut_symbols(blocks, window_s):
        checked = checked_symbols(symbols, model.vocabulary_size)
        yield _measured(start_s, end_s, checked, past, model, remembered_symbols)
        count += len(checked)
        joined = np.concatenate([past, checked])
        past = joined[max(0, len(joined) - max(remembered_symbols, model.order - 1)) :]
    if count < 2:
        raise ValueError(f"the stream has {count} symbols in whole windows; nothing can be measured below 2")


def _measured(
    start_s: float, end_s: float, symbols: Symbols, past: Symbols, model: NgramModel, remembered: int
) -> SymbolWindow:
    per_second = len(symbols) / (end_s - start_s)
    if len(symbols) < FEWEST_SYMBOLS:
        nothing = dict.fromkeys(finest_differences(SymbolWindow), math.nan)
        return SymbolWindow(start_s=start_s, end_s=end_s, **nothing | {"symbols_per_second": per_second})
    repeated, longest = repetition(symbols, past[max(0, len(past) - remembered) :])
    return SymbolWindow(
        start_s=start_s,
        end_s=end_s,
        symbols_per_second=per_second,
        cross_entropy_nats=float(model.surprise_nats(symbols, past).mean()),
        entropy_nats=entropy_nats(symbols),
        distinct_4grams=distinct_grams(symbols),
        compression_ratio=compression_ratio(symbols),
        repeated_share=repeated,
        longest_repeat_share=longest,
    )


def entropy_nats(symbols: Symbols) -> float:
    """Entropy of the shares of the symbols (N,), N >= 1: 0 to log N."""
    counts = np.unique(symbols, return_counts=True)[1]
    shares = counts / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def distinct_grams(symbols: Symbols, length: int = GRAM) -> float:
    """Different n-grams over all n-grams of (N,) symbols, N >= length: 1 where none occurs twice."""
    places = np.unique(symbols, return_inverse=True)[1]  # as few as the window has, so that codes stay small
    codes = ngram_codes(places, length, int(places.max()) + 1)
    return len(np.unique(codes)) / len(codes)


def compression_ratio(symbols: Symbols) -> float:
    """Bytes of the symbols at two each over those that zlib makes of them."""
    raw = symbols.astype("<u2").tobytes()
    return len(raw) / len(zlib.compress(raw, 9))


def repetition(symbols: Symbols, past: Symbols) -> tuple[float, float]:
    """(repeated_share, longest_repeat_share) of symbols (N,), looking back over them and `past` (M,), by any lag."""
    size, longest_lag = len(symbols), len(past) + len(symbols) - 1
    # -1 stands before the stream: nothing repeats it. Row r holds what came `longest_lag - r` symbols earlier.
    joined = np.concatenate([np.full(size - 1, -1), past, symbols]).astype(np.int32)
    earlier = np.lib.stride_tricks.sliding_window_view(joined[:-1], size)
    assert len(earlier) == longest_lag
    equal = earlier == symbols.astype(np.int32)
    most = int(equal.view(np.uint8).sum(axis=1, dtype=np.int32).max(initial=0))
    return most / size, _longest_run(equal) / size


def _longest_run(equal: NDArray[np.bool_]) -> int:
    """Most true values in a row in any of the rows (R, N). Few rows of speech outlast the first steps, so that counting
    up is several times faster than running maxima over all of them; silence outlasts them all, and is left to those."""
    longest = 0
    while len(equal := equal[equal.any(axis=1)]):
        if longest == STEPS_COUNTED:
            return longest + _longest_by_maxima(equal)
        longest += 1
        equal = equal[:, 1:] & equal[:, :-1]
    return longest


def _longest_by_maxima(equal: NDArray[np.bool_]) -> int:
    """The same over rows of which each has a true value."""
    places = np.arange(1, equal.shape[1] + 1, dtype=np.int32)
    last_break = np.maximum.accumulate(np.where(equal, 0, places), axis=1)
    return int((places - last_break).max())
