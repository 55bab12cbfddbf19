"""Planted gibberish: what a stream turns into from a known second on.

Gross: what speech models are known to fall into. Subtle: what keeps nearly all statistics of speech, named apart, since
a detector that misses it is still of use.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from backbones.speech import SPEECH_SAMPLE_RATE_HZ
from experiments.quality.ngram import Symbols
from experiments.quality.windows import SymbolBlock

SymbolDamage = Literal[
    "shuffled", "babble", "random", "silence", "stuck", "loop-1s", "loop-4s", "loop-15s", "replaced-tenth", "reversed"
]
"""shuffled: the symbols in another order. babble: drawn by their shares alone. random: every symbol equally likely.
silence: the silent unit, or no text at all. stuck: one symbol. loop: the last seconds again and again.
replaced-tenth: one symbol in ten drawn by its share. reversed: back to front."""

SoundDamage = Literal[
    "shuffled", "babble", "noise", "silence", "stuck", "loop-1s", "loop-4s", "loop-15s", "clipped", "reversed"
]
"""shuffled: pieces of 80 ms in another order. babble: six stretches of the same speech at once. noise: white, as loud
as the speech. stuck: the last 80 ms that are not silent, again and again. clipped: 30 dB too loud, cut off."""

SUBTLE = ("replaced-tenth", "reversed")
SYMBOL_DAMAGES: tuple[SymbolDamage, ...] = get_args(SymbolDamage)
SOUND_DAMAGES: tuple[SoundDamage, ...] = get_args(SoundDamage)

PIECE_SAMPLES = SPEECH_SAMPLE_RATE_HZ * 80 // 1000
BABBLE_VOICES = 6
CLIPPING_GAIN = 10 ** (30 / 20)
REPLACED_SHARE = 0.1
SPOKEN_PEAK = 0.05


def damage_symbols(
    stream: SymbolBlock,
    kind: SymbolDamage,
    onset_s: float,
    shares: NDArray[np.float64],
    silence: int | None,
    rng: np.random.Generator,
) -> SymbolBlock:
    """The stream with everything from `onset_s` on replaced; times of symbols stay, but for loops and silence.

    shares: (V,) of the symbols, for babble. silence: the symbol of silence; None where silence is no symbol at all.
    """
    first = _checked_onset(onset_s, stream.end_s, int(np.searchsorted(stream.seconds, onset_s)), len(stream.symbols))
    if kind.startswith("loop-"):
        return _looped(stream, onset_s, float(kind.removeprefix("loop-").removesuffix("s")))
    symbols, rest = stream.symbols.copy(), stream.symbols[first:]
    if kind == "silence" and silence is None:
        return dataclasses.replace(stream, symbols=symbols[:first], seconds=stream.seconds[:first])
    if kind == "stuck":
        spoken = symbols[:first][symbols[:first] != silence]
        rest = np.full(len(rest), spoken[-1])
    elif kind == "silence":
        rest = np.full(len(rest), silence)
    elif kind == "shuffled":
        rest = rng.permutation(rest)
    elif kind == "babble":
        rest = rng.choice(len(shares), len(rest), p=shares)
    elif kind == "random":
        rest = rng.integers(len(shares), size=len(rest))
    elif kind == "replaced-tenth":
        rest = np.where(rng.random(len(rest)) < REPLACED_SHARE, rng.choice(len(shares), len(rest), p=shares), rest)
    elif kind == "reversed":
        rest = rest[::-1]
    else:
        raise ValueError(f"no damage {kind!r} of symbols; there are {', '.join(SYMBOL_DAMAGES)}")
    symbols[first:] = rest
    return dataclasses.replace(stream, symbols=symbols)


def _looped(stream: SymbolBlock, onset_s: float, period_s: float) -> SymbolBlock:
    """What stands in the last `period_s` before the onset, again and again to the end."""
    begin, first = np.searchsorted(stream.seconds, [onset_s - period_s, onset_s])
    if onset_s < period_s or begin == first:
        raise ValueError(
            f"a loop of {period_s:g} s needs as much stream before its onset at {onset_s:g} s, with symbols"
        )
    rounds = int(np.ceil((stream.end_s - onset_s) / period_s))
    shifts = period_s * np.arange(1, rounds + 1)[:, None]
    seconds = np.concatenate([stream.seconds[:first], (stream.seconds[begin:first] + shifts).ravel()])
    symbols = np.concatenate([stream.symbols[:first], np.tile(stream.symbols[begin:first], rounds)])
    kept = seconds < stream.end_s
    return dataclasses.replace(stream, symbols=symbols[kept], seconds=seconds[kept])


def damage_sound(
    samples: NDArray[np.float32], kind: SoundDamage, onset_s: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Samples (N,) at 16,000 Hz with everything from `onset_s` on replaced."""
    first = round(onset_s * SPEECH_SAMPLE_RATE_HZ)
    first = _checked_onset(onset_s, len(samples) / SPEECH_SAMPLE_RATE_HZ, first, len(samples))
    before, rest = samples[:first], samples[first:]
    if kind == "silence":
        after: Symbols | NDArray[np.floating] = np.zeros(len(rest))
    elif kind == "noise":
        after = rng.standard_normal(len(rest)) * np.sqrt(np.mean(before**2))
    elif kind == "clipped":
        after = np.clip(rest * CLIPPING_GAIN, -1, 1)
    elif kind == "reversed":
        after = rest[::-1]
    elif kind == "shuffled":
        whole = len(rest) // PIECE_SAMPLES * PIECE_SAMPLES
        pieces = rng.permutation(rest[:whole].reshape(-1, PIECE_SAMPLES))
        after = np.concatenate([pieces.ravel(), rest[whole:]])
    elif kind == "babble":
        voices = sum(np.roll(samples, rng.integers(len(samples)))[first:] for _ in range(BABBLE_VOICES))
        after = np.asarray(voices) / np.sqrt(BABBLE_VOICES)
    elif kind == "stuck":
        after = np.resize(_last_spoken_piece(before), len(rest))
    elif kind.startswith("loop-"):
        seconds = float(kind.removeprefix("loop-").removesuffix("s"))
        period = round(seconds * SPEECH_SAMPLE_RATE_HZ)
        if first < period:
            raise ValueError(f"a loop of {seconds:g} s needs as much sound before its onset at {onset_s:g} s")
        after = np.resize(before[-period:], len(rest))
    else:
        raise ValueError(f"no damage {kind!r} of sound; there are {', '.join(SOUND_DAMAGES)}")
    return np.concatenate([before, after]).astype(np.float32)


def _last_spoken_piece(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    pieces = samples[len(samples) % PIECE_SAMPLES :].reshape(-1, PIECE_SAMPLES)
    spoken = np.flatnonzero(np.abs(pieces).max(axis=1, initial=0.0) > SPOKEN_PEAK)
    if not len(spoken):
        raise ValueError("nothing is said before the onset, so that nothing can get stuck; choose a later onset")
    return pieces[spoken[-1]]


def _checked_onset(onset_s: float, end_s: float, first: int, count: int) -> int:
    if not 0 < first < count:
        raise ValueError(f"the onset is at {onset_s:g} s; it must lie inside the stream's {end_s:g} s, sound before it")
    return first
