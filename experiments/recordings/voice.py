"""Where somebody speaks: WebRTC's voice detector over a stream of sound, and its flags as stretches of speech."""

from __future__ import annotations

import numpy as np
import webrtcvad
from numpy.typing import NDArray

from backbones.speech import SPEECH_SAMPLE_RATE_HZ
from experiments.recordings.settings import PreparationSettings

FLAG_S = 0.03
FLAG_SAMPLES = round(FLAG_S * SPEECH_SAMPLE_RATE_HZ)

_WINDOW_FLAGS = 333  # about 10 s
_LOUD_RMS = 0.1
_MOST_GAIN = 100.0
_LEVEL_KEPT = 0.8
_STEADY_RATIO = 2.0

Flags = NDArray[np.bool_]
Span = tuple[float, float]
"""Seconds: start, end."""


class VoiceDetector:
    """Speech or not for every 30 ms of a mono stream at 16 kHz, in constant memory but for the flags (0.1 MB an hour).

    The detector is made for telephones at full level: at -40 dB it misses half of the speech. So every 10 s are first
    raised to the level of their loud parts, at most 40 dB, and what follows something loud is raised less. Steady noise
    it takes for speech: 10 s whose loud parts are less than 6 dB above their quiet ones are none.
    """

    def __init__(self, strictness: int) -> None:
        self._detector = webrtcvad.Vad(strictness)
        self._waiting = np.zeros(0, dtype=np.float32)
        self._level = 0.0
        self._flags: list[Flags] = []

    def push(self, samples: NDArray[np.float32]) -> None:
        """The next samples (N,), any number of them."""
        self._waiting = np.concatenate([self._waiting, samples])
        window = _WINDOW_FLAGS * FLAG_SAMPLES
        while len(self._waiting) >= window:
            self._detect(self._waiting[:window])
            self._waiting = self._waiting[window:]

    def finish(self) -> Flags:
        """Flags (F,) of all that was pushed; an incomplete last 30 ms count as silence."""
        self._detect(self._waiting)
        self._waiting = self._waiting[:0]
        return np.concatenate([*self._flags, np.zeros(0, dtype=np.bool_)])

    def _detect(self, samples: NDArray[np.float32]) -> None:
        frames = samples[: len(samples) // FLAG_SAMPLES * FLAG_SAMPLES].reshape(-1, FLAG_SAMPLES)
        flags = np.zeros(-(-len(samples) // FLAG_SAMPLES), dtype=np.bool_)
        if len(frames):
            quiet, loud = np.quantile(np.sqrt(np.square(frames).mean(axis=1)), (0.1, 0.95))
            self._level = max(float(loud), _LEVEL_KEPT * self._level)
            if loud > _STEADY_RATIO * quiet:
                gain = min(_LOUD_RMS / self._level, _MOST_GAIN)
                sound = (np.clip(frames * gain, -1, 1) * 32767).astype("<i2")
                spoken = [self._detector.is_speech(frame.tobytes(), SPEECH_SAMPLE_RATE_HZ) for frame in sound]
                flags[: len(frames)] = spoken
        self._flags.append(flags)


def speech_s(flags: Flags) -> float:
    """Seconds that are flagged."""
    return float(flags.sum()) * FLAG_S


def speech_spans(flags: Flags, duration_s: float, settings: PreparationSettings) -> list[Span]:
    """Stretches of speech: no pause in them of `pause_s` or more, with a margin, in order, apart from each other."""
    runs = [run for run in _runs(flags) if run[1] - run[0] >= round(settings.least_speech_s / FLAG_S)]
    joined: list[tuple[int, int]] = []
    for first, end in runs:
        if joined and (first - joined[-1][1]) * FLAG_S < settings.pause_s:
            joined[-1] = joined[-1][0], end
        else:
            joined.append((first, end))
    return [
        (max(0.0, first * FLAG_S - settings.margin_s), min(duration_s, end * FLAG_S + settings.margin_s))
        for first, end in joined
    ]


def divided(span: Span, flags: Flags, longest_s: float) -> tuple[list[Span], int]:
    """A span in pieces of at most `longest_s`, and how many of the cuts fall into speech.

    The cut is in the middle of the longest pause that leaves a quarter of `longest_s` on both sides. Where there is no
    pause at all, it is in the middle, and counted.
    """
    if span[1] - span[0] <= longest_s:
        return [span], 0
    edge_s = longest_s / 4
    first, end = round((span[0] + edge_s) / FLAG_S), round((span[1] - edge_s) / FLAG_S)
    pauses = _runs(~flags[first:end])
    forced = 0
    if pauses:
        longest = max(pauses, key=lambda run: run[1] - run[0])
        cut_s = (first + (longest[0] + longest[1]) / 2) * FLAG_S
    else:
        cut_s, forced = (span[0] + span[1]) / 2, 1
    before, forced_before = divided((span[0], cut_s), flags, longest_s)
    after, forced_after = divided((cut_s, span[1]), flags, longest_s)
    return before + after, forced + forced_before + forced_after


def _runs(flags: Flags) -> list[tuple[int, int]]:
    """Half-open ranges in which the flags are set."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    return [(int(first), int(end)) for first, end in edges.reshape(-1, 2)]
