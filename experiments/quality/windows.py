"""Windows of a stream: a record of measures for every few seconds, and the pieces in which symbols arrive."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Window:
    """Measures of the stream from start_s to end_s, in seconds since it began. NaN: not to be told of this window."""

    start_s: float
    end_s: float

    def measures(self) -> dict[str, float]:
        """Every measure by its name, in the order of the fields."""
        return {name: float(getattr(self, name)) for name in finest_differences(type(self))}


def measure_field(finest: float) -> Any:
    """A field that is a measure. finest: a difference below which two windows count as alike, in the measure's unit."""
    return dataclasses.field(metadata={"finest": finest})


def finest_differences(kind: type[Window]) -> Mapping[str, float]:
    """{measure: its finest difference} of a kind of window, in the order of its fields."""
    return {field.name: field.metadata["finest"] for field in dataclasses.fields(kind) if "finest" in field.metadata}


@dataclass(frozen=True, kw_only=True, eq=False)
class SymbolBlock:
    """A piece of a stream of symbols, everything up to end_s: symbols (N,) int64 and the second of each, rising.

    A block without symbols says that nothing came until end_s.
    """

    symbols: NDArray[np.int64]
    seconds: NDArray[np.float64]
    end_s: float


def at_rate(pieces: Iterable[NDArray[np.int64]], rate_hz: float) -> Iterator[SymbolBlock]:
    """Symbols (N,) that come at a constant rate, as blocks with their seconds."""
    if not (math.isfinite(rate_hz) and rate_hz > 0):
        raise ValueError(f"symbols come at {rate_hz} Hz; give how many of them make a second, above 0")
    count = 0
    for piece in pieces:
        symbols = np.asarray(piece)
        seconds = (count + np.arange(len(symbols))) / rate_hz
        count += len(symbols)
        yield SymbolBlock(symbols=symbols, seconds=seconds, end_s=count / rate_hz)


def cut_symbols(
    blocks: Iterable[SymbolBlock], window_s: float
) -> Iterator[tuple[float, float, NDArray[np.int64], NDArray[np.float64]]]:
    """(start_s, end_s, symbols, seconds) of every whole window; what is left behind the last one is not given.

    Holds one window and one block, whatever the stream's length. ValueError for a stream shorter than a window, for
    times that fall, and for a block whose times and symbols do not go together.
    """
    if not (math.isfinite(window_s) and window_s > 0):
        raise ValueError(f"a window of {window_s} s holds nothing; give seconds above 0")
    symbols, seconds = np.zeros(0, np.int64), np.zeros(0)
    number, known_s = 0, 0.0
    for block in blocks:
        _check_block(block, known_s)
        symbols, seconds = np.concatenate([symbols, block.symbols]), np.concatenate([seconds, block.seconds])
        known_s = block.end_s
        while (number + 1) * window_s <= known_s + 1e-9:  # ends are multiples of a rate: equal but for rounding
            end_s = (number + 1) * window_s
            inside = int(np.searchsorted(seconds, end_s - 1e-9))
            yield number * window_s, end_s, symbols[:inside], seconds[:inside]
            symbols, seconds, number = symbols[inside:], seconds[inside:], number + 1
    if number == 0:
        raise ValueError(
            f"the stream ends after {known_s:g} s and a window takes {window_s:g} s: give a longer stream or ask for "
            "shorter windows"
        )


def _check_block(block: SymbolBlock, known_s: float) -> None:
    symbols, seconds = np.asarray(block.symbols), np.asarray(block.seconds)
    if symbols.ndim != 1 or symbols.shape != seconds.shape:
        raise ValueError(f"a block has symbols {symbols.shape} and seconds {seconds.shape}; give one second a symbol")
    if symbols.size and not np.issubdtype(symbols.dtype, np.integer):
        raise ValueError(f"symbols must be whole numbers, got {symbols.dtype}")
    ends = np.concatenate([[known_s], seconds, [block.end_s]])
    if not np.isfinite(ends).all() or (np.diff(ends) < -1e-9).any():
        raise ValueError(
            f"seconds of a stream never fall: this block reaches from {ends[1]:g} to {block.end_s:g} s after one that "
            f"ended at {known_s:g} s"
        )
