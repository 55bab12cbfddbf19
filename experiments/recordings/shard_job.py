"""The work of one process: a few recordings, or one long one, from sound files to a whole shard."""

from __future__ import annotations

import functools
import hashlib
import json
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from backbones.speech import SPEECH_SAMPLE_RATE_HZ, log_mel, log_mel_windows
from backbones.speech.channels import open_channels
from backbones.speech.mel import N_FFT, WINDOW_SAMPLES
from backbones.speech.mimi import MimiTokenizer
from experiments.data.folders import whole_folder
from experiments.recordings.listening import Heard, listen, share_of
from experiments.recordings.settings import PreparationSettings
from experiments.recordings.shards import SHARD_FILE, Codes, Mel, PartWriter
from experiments.recordings.sound_cutting import Samples, cut_out
from experiments.recordings.source_files import Drop, SoundFile, SourceRecording
from experiments.recordings.stretches import Stretch, stretches_of
from experiments.recordings.turns import FILE_GAP_S, PlannedTurn, conversations_of
from experiments.recordings.voice import speech_s

JOB_BYTES = 32 << 20
JOB_RECORDINGS = 64


@dataclass(frozen=True, kw_only=True)
class ShardJob:
    """What becomes one shard. mimi_folder, codebooks: of the Mimi that codes are made with, if any."""

    recordings: tuple[SourceRecording, ...]
    settings: PreparationSettings
    mimi_folder: Path | None
    codebooks: int

    @property
    def size_bytes(self) -> int:
        return sum(recording.size_bytes for recording in self.recordings)

    @functools.cached_property
    def digest(self) -> str:
        """16 hex digits: other where a file, its size or time of change, its words, or a setting is another."""
        said = [self.settings.shard_digest(), str(self.mimi_folder), str(self.codebooks)]
        said += [json.dumps(asdict(recording), default=str, sort_keys=True) for recording in self.recordings]
        return hashlib.sha256("\n".join(said).encode()).hexdigest()[:16]


def jobs_of(
    recordings: Sequence[SourceRecording], settings: PreparationSettings, mimi_folder: Path | None, codebooks: int
) -> list[ShardJob]:
    """Neighbouring small recordings together, large ones by themselves."""
    groups: list[list[SourceRecording]] = [[]]
    for recording in recordings:
        size = sum(one.size_bytes for one in groups[-1])
        if groups[-1] and (size + recording.size_bytes > JOB_BYTES or len(groups[-1]) >= JOB_RECORDINGS):
            groups.append([])
        groups[-1].append(recording)
    return [
        ShardJob(recordings=tuple(group), settings=settings, mimi_folder=mimi_folder, codebooks=codebooks)
        for group in groups
        if group
    ]


def make_shard(job: ShardJob, shards: Path, heard: Heard) -> None:
    """Makes `shards / job.digest`. heard: told the bytes gone through.

    A recording that cannot be read is a drop in it; a disk that fails is an OSError."""
    began_cpu_s, began_s = time.process_time(), time.monotonic()
    bytes_before = psutil.Process().memory_info().rss
    with whole_folder(shards / job.digest) as folder:
        writer = PartWriter(folder)
        worker = _Worker(job, writer, heard)
        described = [worker.recording(one) for one in job.recordings]
        writer.flush()
        peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        cost = {
            "cpu_s": time.process_time() - began_cpu_s,
            "wall_s": time.monotonic() - began_s,
            "peak_bytes": peak_bytes,
            "bytes_before": bytes_before,
        }
        shard = {"parts": writer.sizes, "cost": cost, "recordings": described}
        (folder / SHARD_FILE).write_text(json.dumps(shard), encoding="utf-8")


@dataclass
class _Plan:
    """A recording between its two passes. stretches: with their times in the recording."""

    stretches: list[tuple[float, Stretch]] = field(default_factory=list)
    drops: list[Drop] = field(default_factory=list)
    files: list[dict[str, Any]] = field(default_factory=list)
    forced_cuts: int = 0
    speech_s: float = 0.0
    end_s: float = 0.0


@dataclass
class _Worker:
    job: ShardJob
    writer: PartWriter
    heard: Heard
    turns_made: int = 0

    def recording(self, recording: SourceRecording) -> dict[str, Any]:
        """What becomes of one recording, as the shard describes it."""
        plan = self._listened(recording)
        conversations = conversations_of(plan.stretches, self.job.settings)
        planned = [turn for conversation in conversations for turn in conversation]
        try:
            places = self._written(recording, planned)
        except ValueError as error:
            plan.drops.append(Drop(what="file", path=recording.name, reason=str(error), seconds=plan.end_s))
            conversations, places = [], {}
        return {
            "name": recording.name,
            "duration_s": sum(file["duration_s"] for file in plan.files),
            "speech_s": plan.speech_s,
            "files": plan.files,
            "forced_cuts": plan.forced_cuts,
            "conversations": [
                [self._row(turn, conversation[0].at_s, places) for turn in conversation]
                for conversation in conversations
            ],
            "drops": [asdict(drop) for drop in plan.drops],
        }

    def _listened(self, recording: SourceRecording) -> _Plan:
        """The first pass. A file that cannot be read leaves a gap that ends a conversation."""
        plan, settings = _Plan(), self.job.settings
        for number, file in enumerate(recording.files):
            try:
                heard = listen(file.path, settings, self._pass_through(file))
            except (ValueError, OSError) as error:
                reason = str(error).removeprefix(f"{file.path} ")
                plan.drops.append(Drop(what="file", path=str(file.path), reason=reason))
                plan.end_s += settings.conversation_pause_s
                continue
            found = stretches_of(number, file, heard, settings)
            plan.drops += found.drops
            plan.forced_cuts += found.forced_cuts
            plan.speech_s += max(speech_s(flags) for flags in heard.flags.values())
            plan.stretches += [(plan.end_s + one.start_s, one) for one in found.stretches]
            plan.end_s += heard.duration_s + FILE_GAP_S
            plan.files.append(
                {
                    "number": number,
                    "path": str(file.path),
                    **asdict(heard.format),
                    "duration_s": heard.duration_s,
                    "channels_are": heard.channels_are,
                    "transcript": file.transcript.source if file.transcript else None,
                }
            )
        return plan

    def _written(self, recording: SourceRecording, planned: list[PlannedTurn]) -> dict[int, dict[str, int]]:
        """The second pass: mel and codes of every turn; where each has its place, by the turn's identity."""
        places: dict[int, dict[str, int]] = {}
        for number, file in enumerate(recording.files):
            turns = [turn for turn in planned if turn.sound is not None and turn.sound.file == number]
            if not turns:
                continue
            sounds = [turn.sound for turn in turns if turn.sound is not None]
            for place, samples in cut_out(self._counted(file), sounds):
                places[id(turns[place])] = self.writer.add(*self._features(samples))
            if any(id(turn) not in places for turn in turns):
                raise ValueError(f"{file.path} became shorter while it was read; prepare it again")
        return places

    def _pass_through(self, file: SoundFile) -> Heard:
        """Tells of one of the two passes through a file, in bytes."""
        return lambda share: self.heard(share * file.size_bytes / 2)

    def _counted(self, file: SoundFile) -> Iterator[Samples]:
        heard, opened = self._pass_through(file), open_channels(file.path)
        for block in opened.blocks:
            heard(share_of(block, opened.announced_s))
            yield block

    def _features(self, samples: Samples) -> tuple[Mel, Codes | None]:
        mel = turn_mel(samples, self.job.settings.n_mels)
        if self.job.mimi_folder is None:
            return mel, None
        codes = _mimi(self.job.mimi_folder, self.job.codebooks).encode(samples, SPEECH_SAMPLE_RATE_HZ)
        return mel, codes.T.contiguous().numpy().astype(np.int16)

    def _row(self, turn: PlannedTurn, start_s: float, places: dict[int, dict[str, int]]) -> dict[str, Any]:
        row: dict[str, Any] = {
            "role": turn.role,
            "start_s": round(turn.at_s - start_s, 3),
            "end_s": round(turn.end_s - start_s, 3),
        }
        if turn.sound is None:
            return row | {"listens": True}
        self.turns_made += 1
        sound = turn.sound
        return row | {
            "id": f"{self.job.digest}-{self.turns_made:06d}",
            "file": sound.file,
            "channel": sound.channel,
            "from_s": round(sound.start_s, 3),
            "to_s": round(sound.end_s, 3),
            "speaker": sound.speaker,
            "text": sound.text,
            "joined": turn.joined,
            **places[id(turn)],
        }


def turn_mel(samples: Samples, n_mels: int) -> Mel:
    """(F, n_mels) of a turn's samples (N,); window by window of 30 s, as the speech encoder takes it."""
    if len(samples) < N_FFT:
        samples = np.pad(samples, (0, N_FFT - len(samples)))
    if len(samples) <= WINDOW_SAMPLES:
        return log_mel(samples, n_mels).numpy().astype(np.float16)
    return torch.cat(list(log_mel_windows(samples, n_mels))).numpy().astype(np.float16)


@functools.lru_cache(maxsize=1)
def _mimi(folder: Path, codebooks: int) -> MimiTokenizer:
    return MimiTokenizer.from_folder(folder, codebooks)
