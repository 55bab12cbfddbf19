"""The first pass through a file: its true length, its format, who speaks when, and what its channels are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from backbones.speech import SPEECH_SAMPLE_RATE_HZ
from backbones.speech.channels import SoundFormat, open_channels
from experiments.recordings.settings import PreparationSettings
from experiments.recordings.voice import Flags, VoiceDetector, speech_s

MIXED = -1
"""In the place of a channel: all of them averaged."""

_MOST_CORRELATION = 0.5
_MOST_AT_ONCE = 0.5
_LEAST_SHARE = 0.05

Heard = Callable[[float], None]
"""Told what was gone through since it was last called: bytes of the source, or shares of a file."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ListenedFile:
    """What is known of a file after all of it was heard. flags: by channel, or by MIXED alone.

    channels_are: "one", "mixed" (several of one sound), or "speakers" (two people, a channel each).
    """

    format: SoundFormat
    duration_s: float
    flags: dict[int, Flags]
    channels_are: Literal["one", "mixed", "speakers"]


def listen(path: Path, settings: PreparationSettings, heard: Heard) -> ListenedFile:
    """Streams through the file once, in constant memory. heard: told shares of the file, as long as that claims to be.

    ValueError where it cannot be read to its end.
    """
    opened = open_channels(path)
    pair = _Pair(settings) if opened.format.channels == 2 and settings.channels != "mix" else None
    mix = VoiceDetector(settings.voice_strictness)
    samples = 0
    for block in opened.blocks:
        mix.push(block.mean(axis=1, dtype=np.float32))
        if pair is not None:
            pair.push(block)
        samples += len(block)
        heard(share_of(block, opened.announced_s))
    if not samples:
        raise ValueError(f"{path} is too short: not one sample at {SPEECH_SAMPLE_RATE_HZ} Hz; leave it out")
    flags = {MIXED: mix.finish()}
    kind: Literal["one", "mixed", "speakers"] = "one" if opened.format.channels == 1 else "mixed"
    if pair is not None and (by_channel := pair.speakers()) is not None:
        flags, kind = by_channel, "speakers"
    return ListenedFile(
        format=opened.format, duration_s=samples / SPEECH_SAMPLE_RATE_HZ, flags=flags, channels_are=kind
    )


def share_of(block: NDArray[np.float32], announced_s: float) -> float:
    """Of a file that claims such a length; 0 where it claims none."""
    return len(block) / SPEECH_SAMPLE_RATE_HZ / announced_s if announced_s else 0.0


class _Pair:
    """Two channels, and whether they are two people."""

    def __init__(self, settings: PreparationSettings) -> None:
        self._detectors = [VoiceDetector(settings.voice_strictness) for _ in range(2)]
        self._is_told = settings.channels == "speakers"
        self._products = np.zeros((2, 2))

    def push(self, block: NDArray[np.float32]) -> None:
        for channel, detector in enumerate(self._detectors):
            detector.push(np.ascontiguousarray(block[:, channel]))
        self._products += block.T.astype(np.float64) @ block.astype(np.float64)

    def speakers(self) -> dict[int, Flags] | None:
        """Flags by channel where they are two people: told so, or unlike each other and seldom speaking at once."""
        flags = dict(enumerate(detector.finish() for detector in self._detectors))
        if self._is_told:
            return flags
        energy = float(np.sqrt(self._products[0, 0] * self._products[1, 1]))
        alike = abs(float(self._products[0, 1])) / energy if energy else 1.0
        spoken = sorted(speech_s(one) for one in flags.values())
        at_once = speech_s(flags[0] & flags[1])
        are_two = (
            alike < _MOST_CORRELATION and spoken[0] > _LEAST_SHARE * spoken[1] and at_once < _MOST_AT_ONCE * spoken[0]
        )
        return flags if are_two else None
