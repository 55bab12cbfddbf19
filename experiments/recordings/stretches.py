"""From flags and transcript to stretches: what one person says without a longer pause, with its words."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from sentencex import segment

from experiments.recordings.listening import MIXED, ListenedFile
from experiments.recordings.settings import PreparationSettings
from experiments.recordings.source_files import Cue, Drop, SoundFile, Transcript
from experiments.recordings.voice import FLAG_S, Flags, Span, divided, speech_s, speech_spans

_LEAST_SPOKEN_SHARE = 0.4
_LEAST_COVERED_SHARE = 0.2
_JUDGED_FROM_S = 10.0
_PAST_THE_END_S = 2.0
_CHARACTERS_PER_SECOND = (2.0, 40.0)


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """Speech of one person. Times in seconds of its file; file: its number in the recording.

    channel: what is to be heard. speaker: who speaks, as far as it is told; "" is not told. is_whole: never joined with
    others. text: "" where it is not known.
    """

    file: int
    channel: int
    start_s: float
    end_s: float
    speaker: str
    text: str = ""
    is_whole: bool = False


@dataclass(frozen=True, kw_only=True)
class FileStretches:
    """The stretches of a file in order, what was left out, and how often speech had to be cut without a pause."""

    stretches: tuple[Stretch, ...]
    drops: tuple[Drop, ...]
    forced_cuts: int = 0


def stretches_of(number: int, file: SoundFile, heard: ListenedFile, settings: PreparationSettings) -> FileStretches:
    """What is said in the file, by its transcript where there is one that fits, else by its pauses."""
    spoken = sum(speech_s(flags) for flags in heard.flags.values())
    spans = {channel: speech_spans(flags, heard.duration_s, settings) for channel, flags in heard.flags.items()}
    if not any(spans.values()):
        reason = f"no speech found in {heard.duration_s:.1f} s"
        drop = Drop(what="file", path=str(file.path), reason=reason, seconds=heard.duration_s)
        return FileStretches(stretches=(), drops=(drop,))
    transcript, drops = file.transcript, []
    if transcript is not None:
        refusal = _mismatch(transcript, heard, spoken)
        if refusal:
            drops.append(Drop(what="transcript", path=transcript.source, reason=f"not used for {file.path}: {refusal}"))
            transcript = None
    if transcript is not None and transcript.cues:
        stretches, left_out = _of_cues(number, transcript.cues, heard, settings)
        return FileStretches(
            stretches=tuple(stretches),
            drops=(*drops, *(replace(drop, path=f"{transcript.source} for {file.path}") for drop in left_out)),
        )
    is_short = heard.duration_s <= settings.longest_turn_s
    if file.is_utterance or (transcript is not None and is_short):
        first, end = (0.0, heard.duration_s) if file.is_utterance else _outer(spans)
        whole = Stretch(
            file=number, channel=MIXED, start_s=first, end_s=end, speaker=transcript.speaker if transcript else "",
            text=transcript.text if transcript else "", is_whole=file.is_utterance,
        )  # fmt: skip
        return FileStretches(stretches=(whole,), drops=tuple(drops))
    stretches, forced = _of_voice(number, spans, heard.flags, settings)
    if transcript is not None:
        if settings.spreads_untimed_text:
            stretches = _spread(transcript.text, stretches)
        else:
            reason = (
                f"not used for {file.path}: it has no times, and the recording is {heard.duration_s:.0f} s long; give "
                ".vtt or .srt, or ask for --spreads-untimed-text"
            )
            drops.append(Drop(what="transcript", path=transcript.source, reason=reason))
    return FileStretches(stretches=tuple(stretches), drops=tuple(drops), forced_cuts=forced)


def _mismatch(transcript: Transcript, heard: ListenedFile, spoken_s: float) -> str:
    """Why the transcript cannot be this file's, or "". Another text of the same pace and length is not noticed."""
    if not transcript.cues:
        pace = len(transcript.text) / spoken_s
        low, high = _CHARACTERS_PER_SECOND
        if low <= pace <= high:
            return ""
        told = f"{len(transcript.text)} characters for {spoken_s:.1f} s of speech"
        return f"{told} are {pace:.1f} a second, not {low:g} to {high:g}"
    last_s = max(cue.end_s for cue in transcript.cues)
    if last_s > heard.duration_s + _PAST_THE_END_S:
        return f"its words go on until {last_s:.1f} s, the sound only until {heard.duration_s:.1f} s"
    anyone = np.logical_or.reduce(list(heard.flags.values()))
    told = _told(transcript.cues, anyone)
    told_s, both_s = speech_s(told), speech_s(told & anyone)
    if told_s < _JUDGED_FROM_S:
        return ""
    if both_s < _LEAST_SPOKEN_SHARE * told_s:
        return f"in {100 * (1 - both_s / told_s):.0f} % of the time of its words nobody speaks"
    if both_s < _LEAST_COVERED_SHARE * speech_s(anyone):
        return f"it has words for {100 * both_s / speech_s(anyone):.0f} % of the speech only"
    return ""


def _told(cues: Sequence[Cue], like: Flags) -> Flags:
    """Where there are words, as flags of the same length."""
    told = np.zeros_like(like)
    for cue in cues:
        told[max(0, round(cue.start_s / FLAG_S)) : max(0, round(cue.end_s / FLAG_S))] = True
    return told


def _of_cues(
    number: int, cues: Sequence[Cue], heard: ListenedFile, settings: PreparationSettings
) -> tuple[list[Stretch], list[Drop]]:
    """A stretch for each cue. Left out are cues without a time in the file, and speech that no cue tells of."""
    stretches: list[Stretch] = []
    bad: list[Cue] = []
    by_channel = heard.channels_are == "speakers"
    for cue in cues:
        end_s = min(cue.end_s, heard.duration_s)
        if cue.start_s < 0 or end_s - cue.start_s < FLAG_S:
            bad.append(cue)
            continue
        channel = _channel(cue, heard) if by_channel else MIXED
        stretches.append(
            Stretch(
                file=number,
                channel=channel,
                start_s=cue.start_s,
                end_s=end_s,
                text=cue.text,
                speaker=f"channel {channel}" if by_channel else cue.speaker,
            )
        )
    drops: list[Drop] = []
    if bad:
        reason = f"{len(bad)} cues have no time in the file, such as {bad[0].text[:40]!r} at {bad[0].start_s:.1f} s"
        drops.append(Drop(what="words", path="", reason=reason))
    anyone = np.logical_or.reduce(list(heard.flags.values()))
    around = [Cue(start_s=c.start_s - settings.pause_s, end_s=c.end_s + settings.pause_s, text="") for c in cues]
    untold_s = speech_s(anyone & ~_told(around, anyone))
    if untold_s > 1.0:
        drops.append(
            Drop(what="speech", path="", reason="speech that the transcript has no words for", seconds=untold_s)
        )
    return stretches, drops


def _channel(cue: Cue, heard: ListenedFile) -> int:
    """The channel that the cue names, else that on which most is said in its time."""
    if cue.channel in heard.flags:
        return cue.channel
    first, end = round(cue.start_s / FLAG_S), round(cue.end_s / FLAG_S)
    return max(heard.flags, key=lambda channel: int(heard.flags[channel][first:end].sum()))


def _of_voice(
    number: int, spans: dict[int, list[Span]], flags: dict[int, Flags], settings: PreparationSettings
) -> tuple[list[Stretch], int]:
    stretches: list[Stretch] = []
    forced = 0
    for channel, of_channel in spans.items():
        speaker = "" if channel == MIXED else f"channel {channel}"
        for span in of_channel:
            pieces, cuts = divided(span, flags[channel], settings.longest_turn_s)
            forced += cuts
            stretches += [
                Stretch(file=number, channel=channel, start_s=first, end_s=end, speaker=speaker)
                for first, end in pieces
            ]
    return sorted(stretches, key=lambda one: (one.start_s, one.channel)), forced


def _outer(spans: dict[int, list[Span]]) -> Span:
    every = list(itertools.chain.from_iterable(spans.values()))
    return min(first for first, _ in every), max(end for _, end in every)


def _spread(text: str, stretches: list[Stretch]) -> list[Stretch]:
    """Sentences dealt out in order: each to the stretch in which its middle falls, were all spoken at one pace."""
    sentences = [sentence.strip() for sentence in segment("en", text) if sentence.strip()]
    ends = np.cumsum([one.end_s - one.start_s for one in stretches])
    lengths = np.cumsum([len(sentence) for sentence in sentences])
    middles = (lengths - np.array([len(sentence) for sentence in sentences]) / 2) / lengths[-1] * ends[-1]
    places = np.minimum(np.searchsorted(ends, middles, side="right"), len(stretches) - 1)
    texts: list[list[str]] = [[] for _ in stretches]
    for place, sentence in zip(places, sentences, strict=True):
        texts[int(place)].append(sentence)
    return [replace(one, text=" ".join(words)) for one, words in zip(stretches, texts, strict=True)]
