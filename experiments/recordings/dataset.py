"""Prepared recordings, read when asked for: turns with log-mel, units and codes, conversations of both splits.

They have what `experiments.data.dataset.ConversationSet` has, so that the loaders of every backbone read them too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lhotse import RecordingSet, SupervisionSet
from torch import Tensor

from backbones.speech import FRAMES_PER_UNIT, UnitCodebook, collapse_repeats, log_mel
from backbones.speech.audio import SPEECH_SAMPLE_RATE_HZ
from experiments.data.conversation_lines import ConversationLines
from experiments.data.conversations import Conversation, Turn
from experiments.data.folders import CorruptCacheError, changed_files
from experiments.data.framing import silence_unit
from experiments.data.text import Speaker
from experiments.data.tokenizer import ConversationTokenizer
from experiments.recordings.set_files import (
    CODEBOOK_FILE,
    CONVERSATIONS_FILE,
    LISTENING_ID,
    RECORDINGS_FILE,
    SETTINGS_FILE,
    STATE_FILE,
    SUPERVISIONS_FILE,
    TOKENIZER_FILE,
    TURNS_FILE,
    SetFolder,
    TurnRow,
)
from experiments.recordings.shards import part_name, read_rows, read_shard
from experiments.recordings.turns import LISTENING_S


@dataclass(frozen=True, kw_only=True)
class PreparedState:
    """What a finished preparation wrote last. settings: as `PreparationSettings.as_dict` gives them.

    silent_codes: a frame of silence, where codes were made.
    """

    digest: str
    shards: tuple[str, ...]
    codebook: str
    silent_codes: tuple[int, ...] | None
    settings: dict[str, Any]


def prepared_state(root: Path) -> PreparedState:
    """ValueError where the folder is no prepared set, or its preparation never came to its end."""
    try:
        state = json.loads((root / STATE_FILE).read_text(encoding="utf-8"))
        identity = json.loads((root / SETTINGS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        begun = "its preparation did not come to its end" if root.is_dir() else "there is no such folder"
        raise ValueError(f"{root} is no prepared set ({begun}): run `make data SOURCE=... NAME={root.name}`") from error
    codes = state["silent_codes"]
    return PreparedState(
        digest=state["digest"],
        shards=tuple(state["shards"]),
        codebook=state["codebook"],
        silent_codes=None if codes is None else tuple(codes),
        settings=identity["settings"],
    )


class RecordedPool:
    """The turns of a prepared set. Features stay on disk and are read slice by slice."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = prepared_state(folder)
        self._files = SetFolder(root=folder)
        self.tokenizer = ConversationTokenizer.load(folder / TOKENIZER_FILE)
        self.codebook = UnitCodebook.load(folder / CODEBOOK_FILE)
        if self.codebook.fingerprint != self.state.codebook:
            raise CorruptCacheError(f"{folder / CODEBOOK_FILE} is not the codebook of its units: prepare again")
        with (self._files.index(self.state.digest) / TURNS_FILE).open(encoding="utf-8") as file:
            self._rows = {row.utterance_id: row for row in (TurnRow(*json.loads(line)) for line in file)}

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __reduce__(self) -> tuple[type[RecordedPool], tuple[Path]]:
        return RecordedPool, (self.folder,)  # a worker process maps the shards itself

    def row(self, utterance_id: str) -> TurnRow:
        if utterance_id not in self._rows:
            raise ValueError(f"no turn {utterance_id!r} in {self.folder}; iterate over the pool for those it has")
        return self._rows[utterance_id]

    def text(self, utterance_id: str) -> str:
        """Its words; "" where they are not known, and of whoever listens."""
        return "" if utterance_id == LISTENING_ID else self.row(utterance_id).text

    def speaker(self, utterance_id: str) -> Speaker:
        """Whose turn it is. Listening belongs to nobody in particular: ask the conversation's turn."""
        return self.row(utterance_id).role

    def mel_frames(self, utterance_id: str) -> int:
        return len(self._silence) if utterance_id == LISTENING_ID else self.row(utterance_id).frames

    def duration_s(self, utterance_id: str) -> float:
        return LISTENING_S if utterance_id == LISTENING_ID else self.row(utterance_id).seconds

    def mel(self, utterance_id: str) -> Tensor:
        """(F, n_mels) float32, rounded to half precision."""
        if utterance_id == LISTENING_ID:
            return self._silence.clone()
        row = self.row(utterance_id)
        return read_rows(self._part(row), "mel", row.first_frame, row.frames).float()

    def unit_count(self, utterance_id: str) -> int:
        """How many `frame_units` gives, without reading them."""
        if utterance_id == LISTENING_ID:
            return len(self._silence) // FRAMES_PER_UNIT
        return self.row(utterance_id).units

    def frame_units(self, utterance_id: str) -> Tensor:
        """(U,) int64: a unit every 20 ms, repeats and all."""
        if utterance_id == LISTENING_ID:
            return torch.full((len(self._silence) // FRAMES_PER_UNIT,), silence_unit(self.codebook))
        row = self.row(utterance_id)
        return read_rows(self._files.units_file(row.shard), "units", row.first_unit, row.units).long()

    def units(self, utterance_id: str) -> tuple[Tensor, Tensor]:
        """Units with repeats collapsed (U,) int64, and their durations (U,) in 20 ms."""
        return collapse_repeats(self.frame_units(utterance_id))

    def codes(self, utterance_id: str) -> Tensor:
        """(frames, Q) int64 of the Mimi that the set was prepared with; ValueError where it was without."""
        row = self.row(utterance_id)
        if not row.codes:
            raise ValueError(
                f"{self.folder} was prepared without a Mimi; prepare it under another name with MIMI=folder"
            )
        return read_rows(self._part(row), "codes", row.first_code, row.codes).long()

    def silent_codes(self) -> Tensor:
        """(Q,) int64: a frame of silence by the Mimi that the set was prepared with; ValueError without one."""
        if self.state.silent_codes is None:
            raise ValueError(
                f"{self.folder} was prepared without a Mimi; prepare it under another name with MIMI=folder"
            )
        return torch.tensor(self.state.silent_codes)

    def manifest(self) -> tuple[RecordingSet, SupervisionSet]:
        """The original recordings and their turns as lhotse sees them."""
        index = self._files.index(self.state.digest)
        return RecordingSet.from_file(index / RECORDINGS_FILE), SupervisionSet.from_file(index / SUPERVISIONS_FILE)

    @cached_property
    def _silence(self) -> Tensor:
        return log_mel(torch.zeros(round(LISTENING_S * SPEECH_SAMPLE_RATE_HZ)), self.codebook.n_mels)

    def _part(self, row: TurnRow) -> Path:
        return self._files.shards / row.shard / part_name(row.part)


class RecordedConversations(ConversationLines):
    """Whole conversations of both splits in the order of the recordings. `curriculum.pieces_of` makes training sets.

    Raises ValueError where the folder is no prepared set, or not the one of that digest, and CorruptCacheError (a
    ValueError) where a file of it is missing or has another size than was written. checks_content: compare every byte
    with its checksum too. digest: that the set must have; None takes the set as it is.
    """

    pool: RecordedPool

    def __init__(self, folder: str | Path, checks_content: bool = False, digest: str | None = None) -> None:
        self.folder = Path(folder).expanduser().resolve()
        self.state = prepared_state(self.folder)
        if digest is not None and digest != self.state.digest:
            raise ValueError(
                f"{self.folder} has changed: it was {digest} and is {self.state.digest} now, prepared again with other "
                "recordings; start anew on what it is now, or prepare what it was under another name"
            )
        files = SetFolder(root=self.folder)
        for shard in self.state.shards:
            if read_shard(files.shards / shard) is None or not files.units_file(shard).is_file():
                raise CorruptCacheError(f"shard {shard} of {self.folder} is not whole: run the same `make data` again")
            if checks_content:
                _check_content(files.shards / shard)
        index = files.index(self.state.digest)
        _check_content(index)
        super().__init__(
            index / CONVERSATIONS_FILE, RecordedPool(self.folder), lambda _, line: json.loads(line)["split"]
        )

    def __reduce__(self) -> tuple[type[RecordedConversations], tuple[Path, bool, str]]:
        return RecordedConversations, (self.folder, False, self.state.digest)

    def __getitem__(self, index: int) -> Conversation:
        row = self.row(index)
        speakers: tuple[Speaker, Speaker] = ("user", "assistant")
        turns = tuple(
            Turn(
                speaker=speakers[place % 2],
                text=self.pool.text(utterance_id),
                utterance_id=utterance_id,
                start_s=start_s,
                end_s=end_s,
            )
            for place, (utterance_id, start_s, end_s) in enumerate(row["turns"])
        )
        return Conversation(name=row["name"], split=row["split"], turns=turns, facts=())


def _check_content(folder: Path) -> None:
    for name, what in changed_files(folder, ()).items():
        raise CorruptCacheError(f"{folder / name} {what}: delete {folder}, then run the same `make data` again")
