"""Measures along a stream against hand-computed and library values; streamed in pieces they are those of the whole."""

from __future__ import annotations

import itertools
import math
import zlib
from collections import Counter

import numpy as np
import pytest
from scipy import stats

from experiments.quality.ngram import NgramModel
from experiments.quality.sound_measures import FLOOR_DBFS, SoundWindow, measure_sound
from experiments.quality.symbol_measures import (
    SymbolWindow,
    compression_ratio,
    distinct_grams,
    entropy_nats,
    measure_symbols,
    repetition,
)
from experiments.quality.windows import SymbolBlock, at_rate

RATE_HZ = 16_000
CORPUS = [np.array([0, 1, 2, 0, 1, 3, 0, 1, 2]), np.array([2, 2, 0])]


def witten_bell(history: tuple[int, ...], symbol: int, size: int) -> float:
    """The definition, one symbol at a time over dictionaries."""
    grams = Counter[tuple[int, ...]]()
    for sequence in CORPUS:
        for start in range(len(sequence) - len(history)):
            grams[tuple(int(s) for s in sequence[start : start + len(history) + 1])] += 1
    after = {gram[-1]: count for gram, count in grams.items() if gram[:-1] == history}
    shorter = witten_bell(history[1:], symbol, size) if history else 1 / size
    if not after:
        return shorter
    total, followers = sum(after.values()), len(after)
    return (after.get(symbol, 0) + followers * shorter) / (total + followers)


def test_surprise_is_witten_bells_definition_and_probabilities_sum_to_one() -> None:
    model = NgramModel.fit(CORPUS, 5, order=3)
    stream = np.array([3, 0, 1, 2, 2, 4, 0, 1])
    expected = [-math.log(witten_bell(tuple(stream[max(0, i - 2) : i].tolist()), int(stream[i]), 5)) for i in range(8)]
    np.testing.assert_allclose(model.surprise_nats(stream), expected, rtol=1e-12)
    for history in itertools.product(range(5), repeat=2):
        before = np.array(history)
        chances = [math.exp(-model.surprise_nats(np.array([symbol]), before)[0]) for symbol in range(5)]
        assert sum(chances) == pytest.approx(1.0, abs=1e-12)


def test_a_model_of_many_symbols_of_a_known_source_finds_its_entropy() -> None:
    rng = np.random.default_rng(0)
    shares = np.array([0.5, 0.25, 0.125, 0.125])
    model = NgramModel.fit([rng.choice(4, 20_000, p=shares)], 4, order=1)
    found = model.surprise_nats(rng.choice(4, 20_000, p=shares)).mean()
    assert found == pytest.approx(stats.entropy(shares), abs=0.02)


def test_entropy_distinct_grams_and_compression_are_the_libraries_and_hand_counts() -> None:
    symbols = np.array([7, 7, 7, 7, 9, 300])
    assert entropy_nats(symbols) == pytest.approx(stats.entropy([4, 1, 1]))
    assert entropy_nats(np.full(9, 3)) == 0.0
    assert distinct_grams(np.array([1, 2, 3, 4, 1, 2, 3, 4])) == pytest.approx(4 / 5)
    raw = b"".join(int(s).to_bytes(2, "little") for s in symbols)
    assert compression_ratio(symbols) == len(raw) / len(zlib.compress(raw, 9))


@pytest.mark.parametrize("period", [1, 3, 7])
def test_a_loop_repeats_wholly_at_its_period(period: int) -> None:
    symbols = np.resize(np.arange(period), 40)
    assert repetition(symbols, np.zeros(0, np.int64)) == ((40 - period) / 40, (40 - period) / 40)
    assert repetition(symbols, symbols[: -(40 % period) or None]) == (1.0, 1.0), "with a past it repeats throughout"


def test_repetition_is_the_slow_search_over_every_lag() -> None:
    rng = np.random.default_rng(1)
    past, symbols = rng.integers(3, size=23), rng.integers(3, size=17)
    joined = np.concatenate([past, symbols])
    share, longest = 0.0, 0
    for lag in range(1, len(joined)):
        equal = [i - lag >= 0 and joined[i] == joined[i - lag] for i in range(23, 40)]
        share = max(share, sum(equal) / 17)
        longest = max(longest, *(len(list(run)) if is_equal else 0 for is_equal, run in itertools.groupby(equal)))
    assert repetition(symbols, past) == (pytest.approx(share), longest / 17)


def unit_model() -> NgramModel:
    return NgramModel.fit([np.random.default_rng(2).integers(20, size=500)], 20)


def test_symbols_in_any_pieces_give_the_records_of_the_whole() -> None:
    stream = np.random.default_rng(3).integers(20, size=1033)
    options = {"window_s": 3.0, "model": unit_model(), "remembered_symbols": 77}
    [*whole] = measure_symbols(at_rate([stream], 50.0), **options)
    assert len(whole) == 6 and whole[5].end_s == 18.0 and all(each.symbols_per_second == 50 for each in whole)
    for sizes in ((1,), (149, 3), (400,)):
        edges = list(itertools.accumulate(itertools.islice(itertools.cycle(sizes), 1100)))
        pieces = np.split(stream, [edge for edge in edges if edge < len(stream)])
        assert list(measure_symbols(at_rate(pieces, 50.0), **options)) == whole
    assert whole[0].perplexity == pytest.approx(math.exp(unit_model().surprise_nats(stream[:150]).mean()))
    assert whole[1].cross_entropy_nats == pytest.approx(unit_model().surprise_nats(stream)[150:300].mean()), (
        "a window's first symbols know what went before"
    )


def test_a_quiet_stretch_of_text_is_a_window_that_says_nothing_but_so() -> None:
    seconds = np.linspace(0, 9.99, 40)
    block = SymbolBlock(symbols=np.arange(40) % 7, seconds=seconds, end_s=30.0)
    told, quiet, _ = measure_symbols([block], window_s=10.0, model=unit_model())
    assert told.symbols_per_second == 4.0 and quiet.symbols_per_second == 0.0
    assert all(math.isnan(value) for name, value in quiet.measures().items() if name != "symbols_per_second")


def sine(level: float, seconds: float, hertz: float = 440.0) -> np.ndarray:
    return (level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE_HZ)) / RATE_HZ)).astype(np.float32)


def measured(*parts: np.ndarray) -> list[SoundWindow]:
    return list(measure_sound([np.concatenate(parts)], sample_rate_hz=RATE_HZ, window_s=1.0))


def test_sound_has_the_levels_that_were_put_in() -> None:
    [tone, half, silent, loud] = measured(
        sine(0.1, 1), sine(0.5, 0.5), np.zeros(24_000, np.float32), np.clip(sine(2.0, 1), -1, 1)
    )
    assert tone.loudness_dbfs == pytest.approx(20 * math.log10(0.1 / math.sqrt(2)), abs=0.01)
    assert (tone.silence_share, tone.clipped_share, half.silence_share) == (0.0, 0.0, 0.5)
    assert tone.level_spread_db < 0.1 and tone.spectral_flatness < 1e-3
    assert silent.loudness_dbfs == FLOOR_DBFS and silent.silence_share == 1.0
    assert math.isnan(silent.spectral_flatness) and math.isnan(silent.repetition)
    assert loud.clipped_share == pytest.approx(2 / 3, abs=0.01), "a sine of 2 is beyond 1 two thirds of the time"


def test_noise_is_as_flat_as_theory_says_and_does_not_repeat() -> None:
    noise = (0.1 * np.random.default_rng(4).standard_normal(5 * RATE_HZ)).astype(np.float32)
    found = measured(noise)
    # Periodogram bins of white noise are exponential: geometric over arithmetic mean is exp(-Euler's gamma).
    assert np.mean([each.spectral_flatness for each in found]) == pytest.approx(math.exp(-np.euler_gamma), abs=0.03)
    assert all(each.repetition < 0.3 for each in found[1:])
    piece = noise[: RATE_HZ * 7 // 10]
    assert all(each.repetition > 0.999 for each in measured(np.resize(piece, 4 * RATE_HZ))[1:])


def test_sound_in_any_pieces_gives_the_records_of_the_whole() -> None:
    rng = np.random.default_rng(5)
    stream = (rng.standard_normal(60_000) * np.repeat(rng.random(60), 1000) * 0.2).astype(np.float32)
    [*whole] = measure_sound([stream], sample_rate_hz=RATE_HZ, window_s=0.5, remembered_s=1.0)
    assert len(whole) == 7
    for size in (1999, 7777, 25_000):
        pieces = [stream[first : first + size] for first in range(0, len(stream), size)]
        found = measure_sound(pieces, sample_rate_hz=RATE_HZ, window_s=0.5, remembered_s=1.0)
        np.testing.assert_array_equal(
            [list(each.measures().values()) for each in found], [list(each.measures().values()) for each in whole]
        )


@pytest.mark.parametrize(
    ("pieces", "rate_hz", "message"),
    [
        ([], 50.0, "the stream ends after 0 s and a window takes 2 s"),
        ([np.array([3])], 50.0, "the stream ends after 0.02 s and a window takes 2 s"),
        ([np.array([3])], 0.1, "has 1 symbols in whole windows"),
        ([np.arange(200)], 50.0, "symbols must lie in 0-19, got 0-99"),
        ([np.ones(200)], 50.0, "whole numbers, got float64"),
        ([np.zeros(200, np.int64)], 0.0, "symbols come at 0.0 Hz"),
        ([np.zeros(200, np.int64)], math.nan, "symbols come at nan Hz"),
    ],
)
def test_bad_symbols_are_refused(pieces: list[np.ndarray], rate_hz: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(measure_symbols(at_rate(pieces, rate_hz), window_s=2.0, model=unit_model()))


def test_times_that_fall_and_models_of_nothing_are_refused() -> None:
    block = SymbolBlock(symbols=np.array([1, 2]), seconds=np.array([1.0, 0.5]), end_s=3.0)
    with pytest.raises(ValueError, match="seconds of a stream never fall"):
        list(measure_symbols([block], window_s=1.0, model=unit_model()))
    with pytest.raises(ValueError, match="no symbols to fit"):
        NgramModel.fit([np.zeros(0, np.int64)], 5)
    with pytest.raises(ValueError, match="below 2 \\*\\* 62; got order 7 over 2048"):
        NgramModel.fit(CORPUS, 2048, order=7)


@pytest.mark.parametrize(
    ("samples", "rate_hz", "message"),
    [
        (np.zeros(0, np.float32), RATE_HZ, "the stream ends after 0 s"),
        (np.zeros(9_000, np.float32), RATE_HZ, "the stream ends after 0.5625 s and a window takes 1 s"),
        (np.full(RATE_HZ, np.nan, np.float32), RATE_HZ, "16000 of 16000 samples are NaN"),
        (np.zeros(RATE_HZ, np.int16), RATE_HZ, "floating samples .* got int16"),
        (np.zeros((RATE_HZ, 2), np.float32), RATE_HZ, "expected mono"),
        (np.zeros(48_000, np.float32), 24_000, "measured at 16000 Hz, got 24000 Hz; resample it first"),
    ],
)
def test_bad_sound_is_refused(samples: np.ndarray, rate_hz: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(measure_sound([samples], sample_rate_hz=rate_hz, window_s=1.0))


def test_every_measure_is_named_once_and_has_a_finest_difference() -> None:
    for kind in (SymbolWindow, SoundWindow):
        values = {name: 0.0 for name in kind.__dataclass_fields__}
        assert list(kind(**values).measures()) == list(kind.__dataclass_fields__)[2:]
