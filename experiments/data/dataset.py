"""A set of conversations on disk: text, sound, log-mel and units of each utterance, read when asked for."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lhotse import RecordingSet, SupervisionSegment, SupervisionSet
from torch import Tensor

from backbones.speech import SPEECH_SAMPLE_RATE_HZ, UnitCodebook, collapse_repeats, read_audio
from experiments.data.conversation_lines import ConversationLines
from experiments.data.conversations import Conversation, ConversationFact, Split, Turn
from experiments.data.folders import CorruptCacheError, changed_files
from experiments.data.spec import ConversationSpec
from experiments.data.text import Speaker
from experiments.data.tokenizer import ConversationTokenizer

SPEC_FILE = "spec.json"
UTTERANCES_FILE = "utterances.jsonl"
MEL_FILE = "mel.npy"
UNITS_FILE = "units.npy"
CODEBOOK_FILE = "codebook.safetensors"
TOKENIZER_FILE = "tokenizer.json"
RECORDINGS_FILE = "recordings.jsonl.gz"
SUPERVISIONS_FILE = "supervisions.jsonl.gz"
CONVERSATIONS_FILE = "conversations.jsonl"

POOL_FILES = (
    SPEC_FILE,
    UTTERANCES_FILE,
    MEL_FILE,
    UNITS_FILE,
    CODEBOOK_FILE,
    TOKENIZER_FILE,
    RECORDINGS_FILE,
    SUPERVISIONS_FILE,
)
SET_FILES = (SPEC_FILE, CONVERSATIONS_FILE)

CHANNELS: dict[Speaker, int] = {"user": 0, "assistant": 1}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class Utterance:
    """One sentence in one voice. mel (F, n_mels) float32 at 100 Hz; units (U,) int64 at 50 Hz with repeats collapsed,
    durations (U,) how often each was repeated.
    """

    utterance_id: str
    speaker: Speaker
    voice: str
    text: str
    samples_path: Path
    duration_s: float
    mel: Tensor
    units: Tensor
    durations: Tensor


@dataclass(frozen=True, kw_only=True)
class DroppedConversation:
    """A conversation left out because one of its sound files is bad."""

    name: str
    utterance_id: str
    reason: str


class UtterancePool:
    """The distinct utterances of a data set. Log-mels and units stay on disk and are read slice by slice."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with (folder / UTTERANCES_FILE).open(encoding="utf-8") as file:
            self._rows: dict[str, dict[str, Any]] = {row["id"]: row for row in map(json.loads, file)}
        self.tokenizer = ConversationTokenizer.load(folder / TOKENIZER_FILE)
        self.codebook = UnitCodebook.load(folder / CODEBOOK_FILE)

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __reduce__(self) -> tuple[type[UtterancePool], tuple[Path]]:
        return UtterancePool, (self.folder,)  # a worker process maps the arrays itself: never sends them

    @cached_property
    def _mel(self) -> np.ndarray:
        return np.load(self.folder / MEL_FILE, mmap_mode="r")

    @cached_property
    def _units(self) -> np.ndarray:
        return np.load(self.folder / UNITS_FILE, mmap_mode="r")

    def _row(self, utterance_id: str) -> dict[str, Any]:
        if utterance_id not in self._rows:
            raise ValueError(f"no utterance {utterance_id!r} in {self.folder}; iterate over the pool for those it has")
        return self._rows[utterance_id]

    def text(self, utterance_id: str) -> str:
        return self._row(utterance_id)["text"]

    def speaker(self, utterance_id: str) -> Speaker:
        return self._row(utterance_id)["speaker"]

    def mel_frames(self, utterance_id: str) -> int:
        return self._row(utterance_id)["frames"]

    def duration_s(self, utterance_id: str) -> float:
        return self._row(utterance_id)["samples"] / SPEECH_SAMPLE_RATE_HZ

    def samples_path(self, utterance_id: str) -> Path:
        return self.folder / self._row(utterance_id)["wav"]

    def mel(self, utterance_id: str) -> Tensor:
        """(F, n_mels) float32, as whisper's code gives it, rounded to half precision."""
        row = self._row(utterance_id)
        part = self._mel[row["first_frame"] : row["first_frame"] + row["frames"]]
        return torch.from_numpy(part.astype(np.float32))

    def units(self, utterance_id: str) -> tuple[Tensor, Tensor]:
        """Units with repeats collapsed (U,) int64, and their durations (U,) in 20 ms."""
        row = self._row(utterance_id)
        part = self._units[row["first_unit"] : row["first_unit"] + row["units"]]
        return collapse_repeats(torch.from_numpy(part.astype(np.int64)))

    def manifest(self) -> tuple[RecordingSet, SupervisionSet]:
        """The utterances as lhotse sees them, with paths that can be opened from anywhere."""
        recordings = RecordingSet.from_file(self.folder / RECORDINGS_FILE).with_path_prefix(self.folder)
        return recordings, SupervisionSet.from_file(self.folder / SUPERVISIONS_FILE)


class ConversationSet(ConversationLines):
    """Conversations of both splits, in order: first those for training, then those for validation.

    `open_conversations` checks the files first.
    """

    pool: UtterancePool

    def __init__(self, spec: ConversationSpec, pool_folder: Path, folder: Path, bad_audio: dict[str, str]) -> None:
        self.spec = spec
        self.folder = folder
        self._bad_audio = bad_audio
        dropped: list[DroppedConversation] = []

        def split_of(number: int, line: bytes) -> Split | None:
            lost = _uses_bad_audio(line, bad_audio)
            if lost is None:
                return "train" if number < spec.conversations else "validation"
            dropped.append(lost)
            return None

        super().__init__(folder / CONVERSATIONS_FILE, UtterancePool(pool_folder), split_of)
        self.dropped = tuple(dropped)

    def __reduce__(self) -> tuple[type[ConversationSet], tuple[ConversationSpec, Path, Path, dict[str, str]]]:
        return ConversationSet, (self.spec, self.pool.folder, self.folder, self._bad_audio)

    def __getitem__(self, index: int) -> Conversation:
        row = self.row(index)
        turns = (
            Turn(speaker=self.pool.speaker(t["utterance_id"]), text=self.pool.text(t["utterance_id"]), **t)
            for t in row["turns"]
        )
        facts = (ConversationFact(asked_turns=tuple(fact.pop("asked_turns")), **fact) for fact in row["facts"])
        return Conversation(name=row["name"], split=row["split"], turns=tuple(turns), facts=tuple(facts))

    def utterance(self, utterance_id: str) -> Utterance:
        """All there is about an utterance; `pool` gives single parts of it without reading the others."""
        units, durations = self.pool.units(utterance_id)
        speaker = self.pool.speaker(utterance_id)
        voice = self.spec.user_voice if speaker == "user" else self.spec.assistant_voice
        return Utterance(
            utterance_id=utterance_id,
            speaker=speaker,
            voice=voice.name,
            text=self.pool.text(utterance_id),
            samples_path=self.pool.samples_path(utterance_id),
            duration_s=self.pool.duration_s(utterance_id),
            mel=self.pool.mel(utterance_id),
            units=units,
            durations=durations,
        )

    def render(self, index: int) -> tuple[np.ndarray, int]:
        """The whole conversation as sound: samples (N, 2) float32, the user left and the assistant right; 16,000 Hz.

        The turns' times in seconds are those of `self[index].turns`. 128 kB per second: twenty minutes are 150 MB.
        """
        conversation = self[index]
        samples = np.zeros((round(conversation.duration_s * SPEECH_SAMPLE_RATE_HZ) + 1, 2), dtype=np.float32)
        for turn in conversation.turns:
            speech = read_audio(self.pool.samples_path(turn.utterance_id)).samples
            first = round(turn.start_s * SPEECH_SAMPLE_RATE_HZ)
            part = samples[first : first + len(speech), CHANNELS[turn.speaker]]
            part += speech[: len(part)]
        return samples, SPEECH_SAMPLE_RATE_HZ

    def supervisions(self, index: int) -> SupervisionSet:
        """lhotse segments of the rendered conversation: one per turn, channel 0 the user, 1 the assistant."""
        conversation = self[index]
        return SupervisionSet.from_segments(
            SupervisionSegment(
                id=f"{conversation.name}-{number:05d}",
                recording_id=conversation.name,
                start=turn.start_s,
                duration=round(turn.end_s - turn.start_s, 6),
                channel=CHANNELS[turn.speaker],
                text=turn.text,
                language="English",
                speaker=turn.speaker,
                custom={"fact_stated": turn.fact_stated, "fact_asked": turn.fact_asked},
            )
            for number, turn in enumerate(conversation.turns)
        )


def _uses_bad_audio(line: bytes, bad_audio: dict[str, str]) -> DroppedConversation | None:
    """What the conversation of this line is dropped for, if it is. Without bad sound, lines need not be parsed."""
    if not bad_audio:
        return None
    row = json.loads(line)
    bad = next((turn["utterance_id"] for turn in row["turns"] if turn["utterance_id"] in bad_audio), None)
    return None if bad is None else DroppedConversation(name=row["name"], utterance_id=bad, reason=bad_audio[bad])


def check_files(folder: Path, required: Sequence[str], skip_bad_audio: bool = False) -> dict[str, str]:
    """Compare every file of a cache folder with its checksum; what is wrong with the sound of which utterance.

    required: files that the folder must have, sound aside.

    Raises CorruptCacheError for the first bad file, except for sound where `skip_bad_audio` asks to go on without.
    """
    bad_audio: dict[str, str] = {}
    for name, what in changed_files(folder, required).items():
        is_audio = name.endswith(".wav")
        if is_audio and skip_bad_audio:
            bad_audio[Path(name).stem] = f"{folder / name} {what}"
            continue
        advice = f"delete the folder {folder} to have it made again"
        if is_audio:
            advice += ", or pass skip_bad_audio=True to leave out the conversations that use it"
        raise CorruptCacheError(f"{folder / name} {what}: {advice}")
    return bad_audio


def open_conversations(
    spec: ConversationSpec, pool_folder: Path, folder: Path, bad_audio: dict[str, str]
) -> ConversationSet:
    """Check the conversations' folder and open the set, without those that use an utterance of `bad_audio`.

    Raises CorruptCacheError where that leaves nothing of a split that had conversations.
    """
    check_files(folder, SET_FILES)
    dataset = ConversationSet(spec, pool_folder, folder, bad_audio)
    for lost in dataset.dropped:
        _log.warning("left out conversation %s: %s", lost.name, lost.reason)
    if not len(dataset):
        raise CorruptCacheError(
            f"every conversation of {folder} uses one of {len(bad_audio)} bad sound files, such as "
            f"{next(iter(bad_audio.values()), 'none')}: delete the folder {pool_folder} to have it made again"
        )
    sizes: dict[Split, int] = {"train": spec.conversations, "validation": spec.validation_conversations}
    for split, size in sizes.items():
        if size and not dataset.split_indices(split):
            raise CorruptCacheError(
                f"every one of the {size} {split} conversations of {folder} uses a bad sound file, such as "
                f"{next(iter(bad_audio.values()), 'none')}: delete the folder {pool_folder} to have it made again"
            )
    return dataset
