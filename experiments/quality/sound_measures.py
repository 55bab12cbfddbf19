"""What can be said of sound without a judge: level, silence, clipping, spectrum and its movement, repetition.

Sound is measured in frames of 20 ms side by side, (F, bands) a window. Levels are dB of full scale (a full-scale square
wave is 0 dBFS), and nothing is below FLOOR_DBFS.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import librosa
import numpy as np
from numpy.typing import NDArray
from scipy import fft

from backbones.speech import SPEECH_SAMPLE_RATE_HZ
from experiments.quality.windows import Window, finest_differences, measure_field

FRAME_SAMPLES = 320
FRAME_RATE_HZ = SPEECH_SAMPLE_RATE_HZ / FRAME_SAMPLES
FFT_SIZE = 512
BANDS = 24
FLOOR_DBFS = -100.0
SILENCE_DBFS = -50.0
CLIPPED_LEVEL = 0.999
SHORTEST_LAG_FRAMES = 10
"""Neighbouring frames of speech are alike: repetition is looked for from 0.2 s on."""
FEWEST_ACTIVE_FRAMES = 5

Samples = NDArray[np.float32]
Frames = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class SoundWindow(Window):
    """One window of sound.

    loudness_dbfs: RMS level of the whole window. silence_share: of frames below -50 dBFS; the others are active.
    clipped_share: of samples at full scale. level_spread_db: standard deviation of active frames' levels.
    spectral_flatness: median over active frames of the power spectrum's geometric over its arithmetic mean (noise 0.56,
    a tone 0). spectral_change_db: mean change of the band levels from one active frame to the next. repetition:
    largest cosine between the window's band levels and those of the same length a lag of 0.2 s or more earlier.
    """

    loudness_dbfs: float = measure_field(0.5)
    silence_share: float = measure_field(0.02)
    clipped_share: float = measure_field(0.001)
    level_spread_db: float = measure_field(0.5)
    spectral_flatness: float = measure_field(0.01)
    spectral_change_db: float = measure_field(0.2)
    repetition: float = measure_field(0.01)


def measure_sound(
    pieces: Iterable[NDArray[np.floating]], *, sample_rate_hz: int, window_s: float, remembered_s: float = 30.0
) -> Iterator[SoundWindow]:
    """A record for every whole window of mono samples (N,) in [-1, 1]; any split into pieces gives the same records.

    window_s: a multiple of 20 ms. remembered_s: before a window, in which repetitions are looked for too. ValueError
    for another rate than 16,000 Hz, samples that are integers or not finite, and a stream shorter than a window.
    """
    frames_per_window = _checked_frames(sample_rate_hz, window_s, remembered_s)
    size, remembered = frames_per_window * FRAME_SAMPLES, round(remembered_s * FRAME_RATE_HZ)
    waiting, number, past = np.zeros(0, np.float32), 0, np.zeros((0, BANDS))
    for piece in pieces:
        waiting = np.concatenate([waiting, _checked_samples(piece)])
        while len(waiting) >= size:
            window, past = _measured(waiting[:size], number, window_s, past)
            yield window
            past = past[max(0, len(past) - remembered) :]
            waiting, number = waiting[size:], number + 1
    if number == 0:
        raise ValueError(
            f"the stream ends after {len(waiting) / sample_rate_hz:g} s and a window takes {window_s:g} s: give a "
            "longer stream or ask for shorter windows"
        )


def _checked_frames(sample_rate_hz: int, window_s: float, remembered_s: float) -> int:
    if sample_rate_hz != SPEECH_SAMPLE_RATE_HZ:
        raise ValueError(
            f"sound is measured at {SPEECH_SAMPLE_RATE_HZ} Hz, got {sample_rate_hz} Hz; resample it first "
            "(backbones.speech.stream_audio does)"
        )
    frames = window_s * FRAME_RATE_HZ
    if not math.isfinite(frames) or frames < 1 or abs(frames - round(frames)) > 1e-9 or not remembered_s >= 0:
        raise ValueError(
            f"window_s must be a multiple of {1 / FRAME_RATE_HZ} s and remembered_s 0 or more, "
            f"got {window_s} and {remembered_s}"
        )
    return round(frames)


def _checked_samples(piece: NDArray[np.floating]) -> Samples:
    samples = np.asarray(piece)
    if samples.ndim != 1 or not np.issubdtype(samples.dtype, np.floating):
        raise ValueError(f"expected mono floating samples (N,) in [-1, 1], got {samples.dtype} {samples.shape}")
    if not np.isfinite(samples).all():
        raise ValueError(f"{np.count_nonzero(~np.isfinite(samples))} of {len(samples)} samples are NaN or infinite")
    return samples.astype(np.float32)


def _measured(samples: Samples, number: int, window_s: float, past: Frames) -> tuple[SoundWindow, Frames]:
    """The window's record, and the band levels of the past with the window's behind them."""
    levels, spectra = frame_levels(samples), frame_spectra(samples)
    bands = _decibels(spectra @ _band_filters().T)
    active = levels > SILENCE_DBFS
    found = dict.fromkeys(finest_differences(SoundWindow), math.nan)
    found |= {
        "loudness_dbfs": float(_decibels(np.mean(samples.astype(np.float64) ** 2))),
        "silence_share": float(1 - active.mean()),
        "clipped_share": float((np.abs(samples) >= CLIPPED_LEVEL).mean()),
    }
    if active.sum() >= FEWEST_ACTIVE_FRAMES:
        flatness = librosa.feature.spectral_flatness(S=spectra[active].T, power=1.0)[0]
        found |= {
            "level_spread_db": float(levels[active].std()),
            "spectral_flatness": float(np.median(flatness)),
            "repetition": repetition(bands, past),
        }
    both = active[1:] & active[:-1]
    if both.sum() >= FEWEST_ACTIVE_FRAMES:
        found["spectral_change_db"] = float(np.abs(np.diff(bands, axis=0))[both].mean())
    window = SoundWindow(start_s=number * window_s, end_s=(number + 1) * window_s, **found)
    return window, np.concatenate([past, bands])


def frame_levels(samples: Samples) -> NDArray[np.float64]:
    """Level (F,) in dBFS of each frame of (F * 320,) samples."""
    return _decibels(np.mean(samples.astype(np.float64).reshape(-1, FRAME_SAMPLES) ** 2, axis=1))


def frame_spectra(samples: Samples) -> Frames:
    """Power spectrum (F, 257) of each frame, Hann window, scaled so that a band's sum is about its mean square."""
    window = np.hanning(FRAME_SAMPLES)
    spectra = np.fft.rfft(samples.reshape(-1, FRAME_SAMPLES) * window, n=FFT_SIZE, axis=1)
    return 2 * np.abs(spectra) ** 2 / (FFT_SIZE * (window**2).sum())


def repetition(bands: Frames, past: Frames) -> float:
    """Largest cosine of `bands` (F, bands) with as many frames at a lag of 10 frames or more, `past` (P, bands)
    included; NaN where so little came before that there is no such lag."""
    joined = np.concatenate([past, bands])
    size, lags = len(bands), len(past)
    if lags < SHORTEST_LAG_FRAMES:
        return math.nan
    centred = joined - joined.mean(axis=0)
    own, length = centred[-size:], fft.next_fast_len(len(joined), real=True)
    spectrum = fft.rfft(centred.T, length) * np.conj(fft.rfft(own.T, length))
    # Place p: the product of the window with the frames from p on, none of which wraps round; the window itself stands
    # at place `lags`.
    products = fft.irfft(spectrum.sum(axis=0), length)[: lags - SHORTEST_LAG_FRAMES + 1]
    energy = np.concatenate([[0.0], np.cumsum((centred**2).sum(axis=1))])
    norms = np.sqrt((energy[size:] - energy[:-size])[: len(products)] * (own**2).sum())
    cosines = np.divide(products, norms, out=np.zeros_like(products), where=norms > 1e-6)
    return float(np.clip(cosines.max(), -1.0, 1.0))


def _decibels(power: NDArray[np.float64] | np.float64) -> NDArray[np.float64]:
    return 10 * np.log10(np.maximum(power, 10 ** (FLOOR_DBFS / 10)))


@functools.cache
def _band_filters() -> NDArray[np.float64]:
    """Triangular mel bands (24, 257), each with sum of weights as wide as it is."""
    filters = librosa.filters.mel(sr=SPEECH_SAMPLE_RATE_HZ, n_fft=FFT_SIZE, n_mels=BANDS, norm=None, dtype=np.float64)
    return np.asarray(filters)
