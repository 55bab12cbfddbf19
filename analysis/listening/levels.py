"""Sounds at one loudness, rate and channel count, so that these tell no system."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy
import soundfile
import soxr
from scipy import signal

if TYPE_CHECKING:
    from collections.abc import Iterable

Samples = Any
"""A numpy array of shape (samples,), float64, full scale 1."""

TARGET_LUFS = -23.0
"""EBU R 128. Lower for an item one of whose clips would pass the highest peak at this loudness."""
HIGHEST_PEAK_DB = -1.0
SHORTEST_S = 0.4
"""One gating block of ITU-R BS.1770: what is shorter has no loudness by that standard."""
HIGHEST_RATE_HZ = 48_000
DEGRADED_CUTOFF_HZ = 1_000.0
DEGRADED_NOISE_DB = 0.0
"""Noise of a degraded copy, relative to the sound that is left of it."""


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One mono clip. samples: (samples,)."""

    name: str
    samples: Samples
    rate_hz: int

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.rate_hz


def read_clip(content: bytes, name: str, start_s: float = 0.0, seconds: float | None = None) -> Clip:
    """A sound file's content, its channels mixed to one; from `start_s` on, at most `seconds` of it.

    Raises:
        ValueError: it is no sound, shorter than 0.4 s (there), or not finite.
    """
    try:
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            rate_hz = int(file.samplerate)
            file.seek(min(round(start_s * rate_hz), file.frames))
            read = file.read(-1 if seconds is None else round(seconds * rate_hz), dtype="float64", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise ValueError(
            f"{name} is no sound file that can be read ({error}); leave it out or make it again"
        ) from error
    samples = read.mean(axis=1)
    if len(samples) / rate_hz < SHORTEST_S:
        where = f" from {start_s:g} s on" if start_s else ""
        raise ValueError(
            f"{name} has {len(samples) / rate_hz:.2f} s of sound{where}, and a clip to compare takes {SHORTEST_S} s or "
            "more; leave it out of the test, or generate a longer answer"
        )
    if not numpy.isfinite(samples).all():
        raise ValueError(f"{name} holds NaN or infinite samples; the model that wrote it broke, leave it out")
    return Clip(name=name, samples=samples, rate_hz=rate_hz)


def common_rate_hz(rates: Iterable[int]) -> int:
    """The highest of the given rates, at most 48 kHz: no clip loses what it has, and none is told by its rate."""
    return min(max(rates), HIGHEST_RATE_HZ)


def at_rate(clip: Clip, rate_hz: int) -> Clip:
    if clip.rate_hz == rate_hz:
        return clip
    return Clip(name=clip.name, samples=soxr.resample(clip.samples, clip.rate_hz, rate_hz), rate_hz=rate_hz)


def level_matched(clips: Sequence[Clip]) -> tuple[list[Clip], float]:
    """The clips at one loudness (ITU-R BS.1770-4, gated), and that loudness in LUFS: -23, or as much lower as the
    clip with the highest peaks needs to stay below -1 dB of full scale.

    Raises:
        ValueError: a clip is silence.
    """
    loudness = [loudness_lufs(clip) for clip in clips]
    highest = [
        HIGHEST_PEAK_DB - 20 * math.log10(float(numpy.abs(clip.samples).max())) + lufs
        for clip, lufs in zip(clips, loudness, strict=True)
    ]
    target = min(TARGET_LUFS, *highest)
    matched = [
        Clip(name=clip.name, samples=clip.samples * 10 ** ((target - lufs) / 20), rate_hz=clip.rate_hz)
        for clip, lufs in zip(clips, loudness, strict=True)
    ]
    return matched, target


def loudness_lufs(clip: Clip) -> float:
    """Integrated loudness by ITU-R BS.1770-4. Raises ValueError for silence, which has none."""
    from pyloudnorm import Meter

    found = float(Meter(clip.rate_hz).integrated_loudness(clip.samples))
    if not math.isfinite(found):
        raise ValueError(
            f"{clip.name} is silence (below -70 LUFS throughout), which no gain makes as loud as speech; leave its "
            "item out, or ask why the system said nothing"
        )
    return found


def degraded(clip: Clip, seed: int) -> Clip:
    """A copy that everybody hears to be worse: cut above 1 kHz, with as much noise as there is sound left."""
    filtered: Samples = signal.sosfilt(
        signal.butter(6, DEGRADED_CUTOFF_HZ, fs=clip.rate_hz, output="sos"), clip.samples
    )
    noise = numpy.random.default_rng(seed).standard_normal(len(filtered))
    strength = math.sqrt(float(numpy.mean(filtered**2))) * 10 ** (DEGRADED_NOISE_DB / 20)
    return Clip(name=f"degraded copy of {clip.name}", samples=filtered + strength * noise, rate_hz=clip.rate_hz)


def wav_bytes(clip: Clip) -> bytes:
    """16-bit PCM: a header without any text, the same for every system."""
    written = io.BytesIO()
    soundfile.write(written, clip.samples, clip.rate_hz, format="WAV", subtype="PCM_16")
    return written.getvalue()
