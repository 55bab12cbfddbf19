"""A prepared set on disk: which files it has, its turns and conversations as they are indexed, its state."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from experiments.data.conversations import Split
from experiments.data.folders import CorruptCacheError
from experiments.data.text import Speaker
from experiments.recordings.shards import SHARD_FILE

SETTINGS_FILE = "settings.json"
STATE_FILE = "set.json"
CODEBOOK_FILE = "codebook.safetensors"
TOKENIZER_FILE = "tokenizer.json"
TURNS_FILE = "turns.jsonl"
CONVERSATIONS_FILE = "conversations.jsonl"
RECORDINGS_FILE = "recordings.jsonl.gz"
SUPERVISIONS_FILE = "supervisions.jsonl.gz"
CARD_FILE = "card.json"
CARD_PAGE = "card.html"

LISTENING_ID = "listening"
"""The utterance of whoever only listens: a moment of silence without words, the same everywhere."""


class TurnRow(NamedTuple):
    """Where a turn's features are. text: "" where its words are not known."""

    utterance_id: str
    role: Speaker
    text: str
    seconds: float
    shard: str
    part: int
    first_frame: int
    frames: int
    first_unit: int
    units: int
    first_code: int
    codes: int


@dataclass(frozen=True, kw_only=True)
class SetFolder:
    """Paths of one prepared set. index: the folder of the state's index, which a later preparation does not change."""

    root: Path

    @property
    def shards(self) -> Path:
        return self.root / "shards"

    @property
    def units(self) -> Path:
        return self.root / "units"

    def units_file(self, shard: str) -> Path:
        return self.units / f"{shard}.safetensors"

    def index(self, digest: str) -> Path:
        return self.root / f"index-{digest}"

    def shard_rows(self, shard: str) -> dict[str, Any]:
        """A shard's description; CorruptCacheError where it is not there."""
        path = self.shards / shard / SHARD_FILE
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CorruptCacheError(f"{path} cannot be read ({error}): prepare the recordings again") from error


def turns_in(shard: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every turn of a shard that has sound, in the order in which its units are kept."""
    for recording in shard["recordings"]:
        for conversation in recording["conversations"]:
            for turn in conversation:
                if "id" in turn:
                    yield turn


@dataclass(frozen=True, kw_only=True)
class IndexedConversation:
    """A conversation as it is indexed. turns: utterance id, start and end in seconds of the conversation."""

    name: str
    split: Split
    recording: str
    turns: tuple[tuple[str, float, float], ...]
