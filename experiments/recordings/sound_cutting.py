"""The second pass through a file: the sound of each of its turns, cut out of a stream in constant memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from backbones.speech import SPEECH_SAMPLE_RATE_HZ
from experiments.recordings.listening import MIXED
from experiments.recordings.stretches import Stretch

Samples = NDArray[np.float32]


@dataclass
class _Open:
    """A stretch of which not all has come yet. Samples [first, end) of the file."""

    place: int
    stretch: Stretch
    first: int
    end: int
    pieces: list[Samples] = field(default_factory=list)


def cut_out(blocks: Iterable[Samples], stretches: Sequence[Stretch]) -> Iterator[tuple[int, Samples]]:
    """(place in `stretches`, samples (N,) mono) of each as soon as its end has come; the sound's end makes it shorter.

    blocks: (N, channels) at 16 kHz in order. Stretches may overlap and stand in any order.
    """
    waiting = [
        _Open(
            place=place,
            stretch=one,
            first=round(one.start_s * SPEECH_SAMPLE_RATE_HZ),
            end=round(one.end_s * SPEECH_SAMPLE_RATE_HZ),
        )
        for place, one in enumerate(stretches)
    ]
    waiting.sort(key=lambda one: -one.first)  # the next one last, where it is cheap to take away
    under_way: list[_Open] = []
    position = 0
    for block in blocks:
        end = position + len(block)
        while waiting and waiting[-1].first < end:
            under_way.append(waiting.pop())
        for one in under_way:
            part = block[max(0, one.first - position) : max(0, one.end - position)]
            one.pieces.append(_of_channel(part, one.stretch.channel))
        for one in [one for one in under_way if one.end <= end]:
            under_way.remove(one)
            yield one.place, np.concatenate(one.pieces)
        position = end
        if not under_way and not waiting:
            return
    for one in under_way:
        yield one.place, np.concatenate(one.pieces)


def _of_channel(part: Samples, channel: int) -> Samples:
    if channel == MIXED:
        return part.mean(axis=1, dtype=np.float32)
    return part[:, channel].copy()
