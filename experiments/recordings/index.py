"""The index of a prepared set: its turns, its conversations, and the same as lhotse's manifests."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lhotse import AudioSource, Recording, RecordingSet, SupervisionSegment, SupervisionSet

from experiments.data.conversations import Split
from experiments.recordings.listening import MIXED
from experiments.recordings.set_files import (
    CONVERSATIONS_FILE,
    LISTENING_ID,
    RECORDINGS_FILE,
    SUPERVISIONS_FILE,
    TURNS_FILE,
    IndexedConversation,
    SetFolder,
    TurnRow,
)
from experiments.recordings.units import units_of


def validation_names(names: Sequence[str], share: float) -> set[str]:
    """The recordings held out: the share of them whose names' digests come first; none where there is only one.

    A recording that is added later may push another one back into training, so the share is kept and little moves.
    """
    if len(names) < 2 or not share:
        return set()
    ordered = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
    return set(ordered[: min(len(names) - 1, math.ceil(share * len(names)))])


def write_index(folder: SetFolder, target: Path, shards: Sequence[str], held_out: set[str], share: float) -> None:
    """Fills `target` with the set's turns, conversations and manifests, shard by shard.

    held_out: recordings of the validation split. Where there is none, the end of the only recording is held out.
    """
    with (
        (target / TURNS_FILE).open("w", encoding="utf-8") as turns_file,
        (target / CONVERSATIONS_FILE).open("w", encoding="utf-8") as conversations_file,
        RecordingSet.open_writer(target / RECORDINGS_FILE) as recordings,
        SupervisionSet.open_writer(target / SUPERVISIONS_FILE) as supervisions,
    ):
        for shard in shards:
            first_unit = 0
            for recording in folder.shard_rows(shard)["recordings"]:
                for row in (turn for conversation in recording["conversations"] for turn in conversation):
                    if "id" not in row:
                        continue
                    indexed = _turn_row(row, shard, first_unit)
                    first_unit += indexed.units
                    turns_file.write(json.dumps(indexed) + "\n")
                for conversation in _conversations(recording, held_out, share):
                    conversations_file.write(json.dumps(asdict(conversation)) + "\n")
                for item in _recordings(recording):
                    recordings.write(item)
                for item in _supervisions(recording):
                    supervisions.write(item)


def _turn_row(row: dict[str, Any], shard: str, first_unit: int) -> TurnRow:
    return TurnRow(
        utterance_id=row["id"],
        role=row["role"],
        text=row["text"],
        seconds=round(row["to_s"] - row["from_s"], 3),
        shard=shard,
        part=row["part"],
        first_frame=row["first_frame"],
        frames=row["frames"],
        first_unit=first_unit,
        units=units_of(row["frames"]),
        first_code=row.get("first_code", 0),
        codes=row.get("codes", 0),
    )


def _conversations(recording: dict[str, Any], held_out: set[str], share: float) -> Iterator[IndexedConversation]:
    every = [
        tuple((turn.get("id", LISTENING_ID), turn["start_s"], turn["end_s"]) for turn in conversation)
        for conversation in recording["conversations"]
    ]
    name = recording["name"]
    if not held_out and share and len(every) == 1 and len(every[0]) > 2:
        cut = 2 * min(len(every[0]) // 2 - 1, round(len(every[0]) / 2 * (1 - share)))
        every = [every[0][:cut], _from_zero(every[0][cut:])]
    kept = len(every) if held_out or not share or len(every) < 2 else len(every) - max(1, round(share * len(every)))
    for number, turns in enumerate(every):
        split: Split = "validation" if name in held_out or number >= kept else "train"
        if turns:
            yield IndexedConversation(name=f"{name}#{number}", split=split, recording=name, turns=turns)


def _from_zero(turns: tuple[tuple[str, float, float], ...]) -> tuple[tuple[str, float, float], ...]:
    zero_s = turns[0][1]
    return tuple((name, round(start - zero_s, 3), round(end - zero_s, 3)) for name, start, end in turns)


def _recordings(recording: dict[str, Any]) -> Iterator[Recording]:
    for file in recording["files"]:
        channels = list(range(file["channels"]))
        yield Recording(
            id=f"{recording['name']}/{file['number']}",
            sources=[AudioSource(type="file", channels=channels, source=file["path"])],
            sampling_rate=file["sample_rate_hz"],
            num_samples=round(file["duration_s"] * file["sample_rate_hz"]),
            duration=file["duration_s"],
        )


def _supervisions(recording: dict[str, Any]) -> Iterator[SupervisionSegment]:
    channels = {file["number"]: list(range(file["channels"])) for file in recording["files"]}
    for row in (turn for conversation in recording["conversations"] for turn in conversation):
        if "id" in row:
            every = channels[row["file"]]
            yield SupervisionSegment(
                id=row["id"],
                recording_id=f"{recording['name']}/{row['file']}",
                start=row["from_s"],
                duration=round(row["to_s"] - row["from_s"], 3),
                channel=row["channel"] if row["channel"] != MIXED else (every if len(every) > 1 else 0),
                text=row["text"] or None,
                speaker=row["speaker"] or None,
                custom={"role": row["role"]},
            )
