"""Excerpts of some 10 s from long streams, cut at pauses, in the same minute of each."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy

from analysis.listening.levels import Clip, Samples, wav_bytes
from analysis.listening.streams import LongStream, hear_the_same

EXCERPT_S, SHORTEST_S, LONGEST_S = 10.0, 7.0, 13.0
SLOT_S, MINUTE_S = 15.0, 60.0
"""At most one excerpt begins in each quarter of a minute."""
REACH_S, LONGEST_WAIT_S = 3.0, 8.0
"""How far from where it should begin an excerpt may begin, so that it begins in a pause; and how much later, so that
it does not begin with seconds of silence."""
FRAME_S, SHORTEST_PAUSE_S, KEPT_SILENCE_S = 0.02, 0.16, 0.2
SILENCE_DBFS = -50.0
"""As `silence_share` of a stream counts it (experiments/quality)."""
LEAST_SOUNDING_S = 2.0
"""An excerpt with less sound is silent, and no item."""
MOST_TRIES = 8
"""Places that are looked at, in one part of the streams, for one where every system speaks."""
FADE_S = 0.01


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Where an excerpt lies in its stream; sounding_s: how much of it sounds."""

    start_s: float
    end_s: float
    sounding_s: float

    @property
    def is_silent(self) -> bool:
        return self.sounding_s < LEAST_SOUNDING_S


@dataclass(frozen=True, kw_only=True)
class StreamItem:
    """A place in the streams called `stream` at which two systems or more speak. along: share of the stream that lies
    before the middle of its 15 s. same_turn: all begin at the reply to the same turn of the user."""

    name: str
    stream: str
    along: float
    same_turn: bool
    cuts: Mapping[str, Cut]


@dataclass(kw_only=True)
class Chosen:
    """What was chosen of all streams. looked_at, silent: excerpts by system."""

    items: list[StreamItem] = field(default_factory=list[StreamItem])
    looked_at: Counter[str] = field(default_factory=Counter[str])
    silent: Counter[str] = field(default_factory=Counter[str])

    def lines(self) -> list[str]:
        """For who makes the test; a rater learns none of it."""
        first, last = (round(100 * self.items[place].along) for place in (0, -1))
        count = f"{len(self.items)} item{'' if len(self.items) == 1 else 's'}"
        told = [
            f"{count} of long streams, cut at pauses, from {first} % to {last} % of their way; "
            f"{sum(each.same_turn for each in self.items)} of them at the reply to the same turn of the user"
        ]
        for label, looked_at in sorted(self.looked_at.items()):
            told.append(
                f"left out as silent (under {LEAST_SOUNDING_S:g} s of sound): {self.silent[label]} of {looked_at} "
                f"excerpts of {label}"
            )
        return told


def choose_excerpts(streams: Mapping[str, Mapping[str, LongStream]], most_items: int) -> Chosen:
    """Items spread evenly from the first to the last minute that all systems of a stream have.

    streams: {name: {system: stream}}, two systems or more each. most_items: of all streams together, at least one each.

    Raises:
        ValueError: there is no place at which two systems speak.
    """
    chosen = Chosen()
    of_each = max(1, math.ceil(most_items / len(streams)))
    for name, of_systems in sorted(streams.items()):
        _choose_along(name, of_systems, of_each, chosen)
    if not chosen.items:
        told = ", ".join(f"{label}: {chosen.silent[label]} of {n}" for label, n in sorted(chosen.looked_at.items()))
        raise ValueError(
            f"there is no place at which two of the systems speak (silent excerpts, of those looked at: {told}); "
            "streams shorter than 15 s, or of models that say nothing, cannot be compared by listening"
        )
    return chosen


def _choose_along(name: str, streams: Mapping[str, LongStream], most_items: int, chosen: Chosen) -> None:
    shared_s = min(stream.seconds for stream in streams.values())
    slots = int(shared_s // SLOT_S)
    is_same = hear_the_same(list(streams.values()))
    ended_s = dict.fromkeys(streams, 0.0)
    for part in numpy.array_split(numpy.arange(slots), min(most_items, slots)) if slots else []:
        best: StreamItem | None = None
        for slot in part[:: max(1, math.ceil(len(part) / MOST_TRIES))]:
            found = _at_slot(name, streams, float(slot) * SLOT_S, shared_s, is_same, ended_s, chosen)
            if found is not None and (best is None or len(found.cuts) > len(best.cuts)):
                best = found
            if best is not None and len(best.cuts) == len(streams):
                break
        if best is not None:
            chosen.items.append(best)
            ended_s |= {label: each.end_s for label, each in best.cuts.items()}


def _at_slot(
    name: str, streams: Mapping[str, LongStream], slot_s: float, shared_s: float, is_same: bool,
    ended_s: Mapping[str, float], chosen: Chosen,
) -> StreamItem | None:  # fmt: skip
    """What the systems say there; None where fewer than two speak."""
    targets = _same_turn(streams, slot_s) if is_same else None
    cuts: dict[str, Cut] = {}
    for label, stream in streams.items():
        cut = cut_at_pauses(stream, slot_s if targets is None else targets[label], ended_s[label])
        if cut is None:
            continue
        chosen.looked_at[label] += 1
        if cut.is_silent:
            chosen.silent[label] += 1
        else:
            cuts[label] = cut
    if len(cuts) < 2:
        return None
    minute, second = divmod(round(slot_s), round(MINUTE_S))
    return StreamItem(
        name=f"{name} minute {minute:03d}:{second:02d}", stream=name, along=(slot_s + SLOT_S / 2) / shared_s,
        same_turn=targets is not None, cuts=cuts,
    )  # fmt: skip


def _same_turn(streams: Mapping[str, LongStream], slot_s: float) -> dict[str, float] | None:
    """{system: when the reply is due to the first turn of the slot}; None where not all hear it within that minute.

    Who takes turns replies faster or slower, so that one turn may stand in other minutes of other systems.
    """
    first = next(iter(streams.values()))
    for number, turn in enumerate(first.heard):
        if slot_s <= turn.reply_due_s < slot_s + SLOT_S:
            if any(number >= len(stream.heard) for stream in streams.values()):
                return None
            due = {label: stream.heard[number].reply_due_s for label, stream in streams.items()}
            return due if {each // MINUTE_S for each in due.values()} == {slot_s // MINUTE_S} else None
    return None


def cut_at_pauses(stream: LongStream, target_s: float, not_before_s: float = 0.0) -> Cut | None:
    """About 10 s from `target_s` on, that begin and end in pauses; where there is no pause, where it is quietest.

    None where less than the shortest excerpt is left of the stream, or lies behind `not_before_s`.
    """
    minute_s = target_s // MINUTE_S * MINUTE_S
    earliest_s = max(target_s - REACH_S, minute_s, not_before_s)
    latest_s = min(target_s + REACH_S, minute_s + MINUTE_S, stream.seconds - SHORTEST_S)
    if latest_s < earliest_s:
        return None
    furthest_s = max(latest_s, min(target_s + LONGEST_WAIT_S, minute_s + MINUTE_S, stream.seconds - SHORTEST_S))
    levels = levels_dbfs(stream.read(earliest_s, furthest_s + LONGEST_S), stream.rate_hz)
    sounds = levels > SILENCE_DBFS
    last, furthest = (
        max(0, min(_frames(each - earliest_s), len(levels) - _frames(SHORTEST_S))) for each in (latest_s, furthest_s)
    )
    start = _point(levels, sounds, 0, last, _frames(target_s - earliest_s))
    sound = start + int(numpy.argmax(sounds[start:])) if sounds[start:].any() else start
    start = max(start, min(sound - _frames(KEPT_SILENCE_S), furthest))
    shortest, longest = start + _frames(SHORTEST_S), min(start + _frames(LONGEST_S), len(levels))
    end = _point(levels, sounds, min(shortest, longest), longest, start + _frames(EXCERPT_S))
    heard = numpy.flatnonzero(sounds[start:end])
    if len(heard):
        end = min(end, max(start + int(heard[-1]) + 1 + _frames(KEPT_SILENCE_S), shortest))
    return Cut(
        start_s=earliest_s + start * FRAME_S, end_s=earliest_s + end * FRAME_S,
        sounding_s=float(sounds[start:end].sum()) * FRAME_S,
    )  # fmt: skip


def excerpt_wav(stream: LongStream, cut: Cut, name: str) -> bytes:
    """The excerpt as a file, its ends faded over 10 ms: a cut outside of a pause would click."""
    samples = stream.read(cut.start_s, cut.end_s)
    fade = min(round(FADE_S * stream.rate_hz), len(samples) // 2)
    ramp = numpy.linspace(0.0, 1.0, fade, endpoint=False)
    samples[:fade] *= ramp
    samples[len(samples) - fade :] *= ramp[::-1]
    return wav_bytes(Clip(name=name, samples=samples, rate_hz=stream.rate_hz))


def levels_dbfs(samples: Samples, rate_hz: int) -> Samples:
    """RMS level of every whole 20 ms."""
    length = round(FRAME_S * rate_hz)
    frames = samples[: len(samples) // length * length].reshape(-1, length)
    return 10 * numpy.log10(numpy.mean(frames**2, axis=1) + 1e-12)


def _frames(seconds: float) -> int:
    return round(seconds / FRAME_S)


def _point(levels: Samples, sounds: Sequence[bool], first: int, last: int, wanted: int) -> int:
    """The frame in first..last that lies inside a pause and is nearest to the one wanted, else the quietest one."""
    half = _frames(SHORTEST_PAUSE_S / 2)
    loud = numpy.convolve(numpy.asarray(sounds, dtype=int), numpy.ones(2 * half + 1, dtype=int), mode="same")
    places = numpy.arange(min(first, len(levels) - 1), min(last, len(levels) - 1) + 1)
    quiet = places[loud[places] == 0]
    if len(quiet):
        return int(quiet[numpy.argmin(numpy.abs(quiet - wanted))])
    return int(places[numpy.argmin(levels[places])])
