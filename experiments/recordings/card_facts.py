"""What a prepared set holds, in numbers: hours, turns, lengths, pauses, formats, costs, drops, and who can use it."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from experiments.recordings.curriculum import CURRICULUM_POSITIONS, LAYOUTS, Layout, pieces_of
from experiments.recordings.dataset import RecordedConversations
from experiments.recordings.set_files import SetFolder
from experiments.recordings.source_files import Drop

TURN_EDGES_S = (0, 0.5, 1, 2, 4, 8, 12, 16, 20, 25, 30, float("inf"))
PAUSE_EDGES_S = (float("-inf"), 0, 0.2, 0.5, 1, 2, 4, 8, 16, 30)
CONVERSATION_EDGES_S = (0, 15, 30, 60, 300, 900, 1800, 3600, 7200, 14400, float("inf"))


def card_facts(root: Path, drops: Sequence[Drop], ignored: dict[str, int]) -> dict[str, Any]:
    """Everything the card says. drops: those of the source itself; the shards know the others."""
    recorded = RecordedConversations(root)
    splits = _splits(recorded)
    tally = _Tally()
    folder = SetFolder(root=root)
    for shard in recorded.state.shards:
        tally.add(folder.shard_rows(shard), splits)
    every_drop = sorted([*map(asdict, drops), *tally.drops], key=lambda drop: (drop["what"], drop["path"]))
    seconds = tally.seconds
    sizes = _bytes_below(root)
    hours = max(seconds["sound"] / 3600, 1e-9)
    return {
        "name": root.name,
        "digest": recorded.state.digest,
        "settings": recorded.state.settings,
        "recordings": len(tally.recordings),
        "recordings_used": sum(1 for one in tally.recordings if one["turns"]),
        "conversations": {split: len(recorded.split_indices(split)) for split in ("train", "validation")},
        "hours": {what: seconds[what] / 3600 for what in ("sound", "speech", "heard", "learned", "with_words")},
        "turns": dict(tally.turns),
        "forced_cuts": tally.forced_cuts,
        "channels": dict(tally.channels),
        "formats": [
            {"codec": codec, "sample_rate_hz": rate, "channels": channels, "files": files, "hours": heard / 3600}
            for (codec, rate, channels), (files, heard) in sorted(tally.formats.items())
        ],
        "lengths": {
            "turns_heard_s": histogram(tally.turn_lengths["user"], TURN_EDGES_S),
            "turns_learned_s": histogram(tally.turn_lengths["assistant"], TURN_EDGES_S),
            "pauses_s": histogram(tally.pauses, PAUSE_EDGES_S),
            "conversations_s": histogram(tally.conversation_lengths, CONVERSATION_EDGES_S),
        },
        "cost": {
            "cpu_s_per_hour_of_sound": tally.cost["cpu_s"] / hours,
            "wall_s_of_one_process_per_hour_of_sound": tally.cost["wall_s"] / hours,
            "peak_bytes_of_a_process": int(tally.cost["peak_bytes"]),
            "most_growth_of_a_process_bytes": int(tally.cost["growth_bytes"]),
            "disk_bytes": sizes,
            "disk_bytes_per_hour_of_sound": round(sizes / hours),
        },
        "units": recorded.codebook.size,
        "text_vocabulary": recorded.tokenizer.vocab_size,
        "has_codes": recorded.state.silent_codes is not None,
        "usable_by": [_usable_by(recorded, backbone, layout) for backbone, layout in LAYOUTS.items()],
        "per_recording": tally.recordings,
        "drops": every_drop,
        "ignored": ignored,
    }


def histogram(values: Iterable[float], edges: Sequence[float]) -> list[dict[str, Any]]:
    """Counts between neighbouring edges (the lower one included), each with its text."""
    counts = [0] * (len(edges) - 1)
    for value in values:
        place = next((i for i, high in enumerate(edges[1:]) if value < high), len(counts) - 1)
        counts[place] += 1
    return [
        {"from": _finite(low), "to": _finite(high), "label": _label(low, high), "count": count}
        for (low, high), count in zip(itertools.pairwise(edges), counts, strict=True)
    ]


def _finite(edge: float) -> float | None:
    return edge if abs(edge) != float("inf") else None


def _label(low: float, high: float) -> str:
    if low == float("-inf"):
        return f"under {_time(high)}"
    if high == float("inf"):
        return f"{_time(low)} and more"
    return f"{_time(low)} to {_time(high)}"


def _time(seconds: float) -> str:
    if seconds >= 3600:
        return f"{seconds / 3600:g} h"
    if seconds >= 60:
        return f"{seconds / 60:g} min"
    return f"{seconds:g} s"


class _Tally:
    """Sums over shards, one shard in memory at a time."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.cost: defaultdict[str, float] = defaultdict(float)
        self.turns: Counter[str] = Counter(heard=0, learned=0, listening=0, with_words=0)
        self.channels: Counter[str] = Counter()
        self.formats: defaultdict[tuple[str, int, int], tuple[int, float]] = defaultdict(lambda: (0, 0.0))
        self.turn_lengths: dict[str, list[float]] = {"user": [], "assistant": []}
        self.pauses: list[float] = []
        self.conversation_lengths: list[float] = []
        self.recordings: list[dict[str, Any]] = []
        self.drops: list[dict[str, Any]] = []
        self.forced_cuts = 0

    def add(self, shard: dict[str, Any], splits: dict[str, str]) -> None:
        cost = shard["cost"]
        for what in ("cpu_s", "wall_s"):
            self.cost[what] += cost[what]
        self.cost["peak_bytes"] = max(self.cost["peak_bytes"], cost["peak_bytes"])
        growth = cost["peak_bytes"] - cost["bytes_before"]
        self.cost["growth_bytes"] = max(self.cost["growth_bytes"], growth)
        for recording in shard["recordings"]:
            self._add_recording(recording, splits)

    def _add_recording(self, recording: dict[str, Any], splits: dict[str, str]) -> None:
        self.drops += recording["drops"]
        self.forced_cuts += recording["forced_cuts"]
        self.seconds["sound"] += recording["duration_s"]
        self.seconds["speech"] += recording["speech_s"]
        for file in recording["files"]:
            self.channels[file["channels_are"]] += 1
            key = file["codec"], file["sample_rate_hz"], file["channels"]
            files, seconds = self.formats[key]
            self.formats[key] = files + 1, seconds + file["duration_s"]
        turns = 0
        for conversation in recording["conversations"]:
            self.conversation_lengths.append(conversation[-1]["end_s"])
            spoken = [turn for turn in conversation if "id" in turn]
            turns += len(spoken)
            self.turns["listening"] += len(conversation) - len(spoken)
            self.pauses += [after["start_s"] - before["end_s"] for before, after in itertools.pairwise(spoken)]
            for turn in spoken:
                self._add_turn(turn)
        self.recordings.append(
            {
                "name": recording["name"],
                "seconds": recording["duration_s"],
                "speech_s": recording["speech_s"],
                "conversations": len(recording["conversations"]),
                "turns": turns,
                "split": splits.get(recording["name"], "not used"),
                "words": any(turn.get("text") for conversation in recording["conversations"] for turn in conversation),
                "channels_are": ", ".join(sorted({file["channels_are"] for file in recording["files"]})),
            }
        )

    def _add_turn(self, turn: dict[str, Any]) -> None:
        seconds = turn["to_s"] - turn["from_s"]
        what = "heard" if turn["role"] == "user" else "learned"
        self.turns[what] += 1
        self.seconds[what] += seconds
        self.turn_lengths[turn["role"]].append(seconds)
        if turn["text"]:
            self.turns["with_words"] += 1
            self.seconds["with_words"] += seconds


def _splits(recorded: RecordedConversations) -> dict[str, str]:
    """Which split each recording is in; both, where the only one is divided."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for conversation in recorded:
        found[conversation.name.rpartition("#")[0]].add(conversation.split)
    return {name: " and ".join(sorted(splits)) for name, splits in found.items()}


def _usable_by(recorded: RecordedConversations, backbone: str, layout: Layout) -> dict[str, Any]:
    """Pieces of every curriculum set for one backbone, or why it can use nothing."""
    stages: dict[str, Any] = {}
    reason, left_out_s = "", 0.0
    for positions in CURRICULUM_POSITIONS:
        try:
            pieces = pieces_of(recorded, positions, layout)
        except ValueError as error:
            return {"backbone": backbone, "layout": layout, "refusal": str(error), "stages": {}, "left_out_hours": 0.0}
        left_out_s = sum(one.seconds for one in pieces.left_out)
        reason = "; ".join(sorted({one.reason for one in pieces.left_out}))
        stages[str(positions)] = {
            split: {
                "pieces": len(pieces.split_indices(split)),
                "positions": sum(pieces.positions(index) for index in pieces.split_indices(split)),
                "chains": len(pieces.chains(split)),
            }
            for split in ("train", "validation")
        }
    return {
        "backbone": backbone,
        "layout": layout,
        "refusal": reason,
        "stages": stages,
        "left_out_hours": left_out_s / 3600,
    }


def _bytes_below(root: Path) -> int:
    return sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
