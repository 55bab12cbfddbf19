"""Recordings by manifest: a csv or jsonl with a row per sound file, or lhotse's recordings, supervisions and cuts."""

from __future__ import annotations

import csv
import itertools
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lhotse import Recording, load_manifest_lazy
from lhotse.supervision import SupervisionSegment

from experiments.recordings.source_files import (
    Cue,
    Drop,
    FoundSource,
    SoundFile,
    SourceRecording,
    Transcript,
    sound_file,
)

COLUMNS = ("audio", "text", "speaker", "conversation", "start", "end")


@dataclass(frozen=True, kw_only=True)
class _Row:
    audio: str
    cue: Cue | None
    text: str
    speaker: str
    conversation: str


def recordings_in_table(path: Path) -> FoundSource:
    """A csv or jsonl whose rows have `audio` and may have text, speaker, conversation, start and end in seconds.

    Rows with times are cues of their file; rows without are whole utterances, of one recording where they name the same
    `conversation`. Paths are relative to the manifest. ValueError names the first row that cannot be understood.
    """
    rows = [_row(path, number, fields) for number, fields in _table(path)]
    by_recording: dict[str, list[_Row]] = defaultdict(list)
    for row in rows:
        by_recording[row.conversation or row.audio].append(row)
    recordings: list[SourceRecording] = []
    drops: list[Drop] = []
    for name, group in by_recording.items():
        files = list(_files(path, group, drops))
        if files:
            recordings.append(SourceRecording(name=name, files=tuple(files)))
    return FoundSource(recordings=tuple(sorted(recordings, key=lambda one: one.name)), drops=tuple(drops), ignored={})


def _table(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix == ".csv":
                yield from enumerate(csv.DictReader(file), start=2)
                return
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, json.loads(line)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} cannot be read as a {path.suffix[1:]} manifest ({error}); write it again") from error


def _row(path: Path, number: int, fields: Any) -> _Row:
    if not isinstance(fields, dict) or not fields.get("audio"):
        raise ValueError(
            f"{path}:{number} names no audio; a row needs {COLUMNS[0]} and may have {', '.join(COLUMNS[1:])}"
        )
    unknown = sorted(str(name) for name in set(fields) - set(COLUMNS))
    if unknown:
        raise ValueError(f"{path}:{number} has {', '.join(unknown)}; known columns are {', '.join(COLUMNS)}")
    told = {name: fields.get(name) or "" for name in COLUMNS}
    cue = None
    if told["start"] != "" or told["end"] != "" or fields.get("start") == 0:
        try:
            start_s, end_s = float(fields["start"]), float(fields["end"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}:{number} needs start and end as seconds, or neither; got {fields}") from error
        cue = Cue(start_s=start_s, end_s=end_s, text=str(told["text"]), speaker=str(told["speaker"]))
    return _Row(
        audio=str(told["audio"]), cue=cue, text=str(told["text"]).strip(), speaker=str(told["speaker"]),
        conversation=str(told["conversation"]),
    )  # fmt: skip


def _files(path: Path, group: list[_Row], drops: list[Drop]) -> Iterator[SoundFile]:
    """The files of one recording in the order of the manifest."""
    several = len({row.audio for row in group}) > 1
    for audio, found in itertools.groupby(group, key=lambda row: row.audio):
        rows = list(found)
        cues = tuple(row.cue for row in rows if row.cue is not None)
        texts = [row.text for row in rows if row.cue is None and row.text]
        transcript = None
        if cues:
            transcript = Transcript(source=str(path), cues=tuple(sorted(cues, key=lambda cue: cue.start_s)))
        elif texts:
            transcript = Transcript(source=str(path), text=" ".join(texts), speaker=rows[0].speaker)
        try:
            yield sound_file(path.parent / audio, transcript, is_utterance=several and not cues)
        except OSError as error:
            drops.append(Drop(what="file", path=str(path.parent / audio), reason=f"not there ({error.strerror})"))


def recordings_of_lhotse(path: Path) -> FoundSource:
    """lhotse's cuts, or recordings with the supervisions of the same name beside them.

    Of cuts, their recordings are taken whole, with the supervisions of all cuts: what lies between cuts is sound too.
    """
    recordings: dict[str, Recording] = {}
    supervisions: dict[str, list[SupervisionSegment]] = defaultdict(list)
    for item in _lhotse_items(path):
        if isinstance(item, Recording):
            recordings[item.id] = item
        elif hasattr(item, "supervisions") and getattr(item, "recording", None) is not None:
            recordings[item.recording.id] = item.recording
            supervisions[item.recording.id] += [one.with_offset(item.start) for one in item.supervisions]
        else:
            raise ValueError(f"{path} holds {type(item).__name__}; give cuts with recordings, or recordings")
    beside = path.with_name(path.name.replace("recordings", "supervisions"))
    if beside != path and beside.is_file():
        for item in _lhotse_items(beside):
            supervisions[item.recording_id].append(item)
    found: list[SourceRecording] = []
    drops: list[Drop] = []
    for identifier in sorted(recordings):
        taken = _of_lhotse(recordings[identifier], supervisions[identifier], path)
        if isinstance(taken, Drop):
            drops.append(taken)
        else:
            found.append(taken)
    return FoundSource(recordings=tuple(found), drops=tuple(drops), ignored={})


def _lhotse_items(path: Path) -> Iterable[Any]:
    try:
        yield from load_manifest_lazy(path) or ()
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise ValueError(f"{path} cannot be read as a lhotse manifest ({error}); write it again with lhotse") from error


def _of_lhotse(recording: Recording, supervisions: list[SupervisionSegment], manifest: Path) -> SourceRecording | Drop:
    source = recording.sources[0]
    if len(recording.sources) != 1 or source.type != "file":
        kinds = ", ".join(sorted({one.type for one in recording.sources}))
        reason = f"made of {len(recording.sources)} sources of type {kinds}; only one file each is read"
        return Drop(what="file", path=recording.id, reason=reason, seconds=recording.duration)
    cues = tuple(
        Cue(
            start_s=one.start,
            end_s=one.end,
            text=one.text or "",
            speaker=one.speaker or "",
            channel=one.channel if isinstance(one.channel, int) and recording.num_channels > 1 else None,
        )
        for one in sorted(supervisions, key=lambda one: one.start)
    )
    given = Path(source.source)
    path = given if given.is_file() else manifest.parent / given
    try:
        file = sound_file(path, Transcript(source=str(manifest), cues=cues) if cues else None)
    except OSError as error:
        return Drop(what="file", path=str(given), reason=f"not there ({error.strerror})", seconds=recording.duration)
    return SourceRecording(name=recording.id, files=(file,))
