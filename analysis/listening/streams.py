"""Long streams that runs left on disk: where they are, what they heard, read by offset."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import soundfile

from analysis.listening.levels import Samples
from analysis.runs import LoggedRun

STREAM_SECONDS = "stream/seconds"
"""Metric of every run that spoke long streams."""
FOLDER_TAG = "run_folder"
STREAMS_FOLDER, AUDIO_FILE, HEARD_FILE, RUN_FILE = "streams", "speech.wav", "heard.csv", "run.json"


@dataclass(frozen=True, kw_only=True)
class HeardTurn:
    """A turn of the user: heard from `start_s` on, to be replied to from `reply_due_s` on."""

    utterance_id: str
    start_s: float
    reply_due_s: float


@dataclass(frozen=True, kw_only=True)
class LongStream:
    """One stream on disk, of hours perhaps. heard: the user's turns; none where a run has not told them."""

    audio: Path
    seconds: float
    rate_hz: int
    heard: tuple[HeardTurn, ...] = ()

    def read(self, start_s: float, end_s: float) -> Samples:
        """Its samples between two seconds, channels mixed, and nothing else of the file; fewer at its end.

        Raises:
            ValueError: the file cannot be read there.
        """
        try:
            with soundfile.SoundFile(self.audio) as file:
                first = min(round(start_s * self.rate_hz), file.frames)
                file.seek(first)
                read = file.read(max(0, round(end_s * self.rate_hz) - first), dtype="float64", always_2d=True)
        except (soundfile.LibsndfileError, RuntimeError) as error:
            raise ValueError(f"{self.audio} cannot be read from {start_s:.1f} s on: {error}") from error
        return read.mean(axis=1)


def streams_of_run(run: LoggedRun) -> dict[str, LongStream]:
    """{name: stream} of a run that spoke long streams; none of another. The same name in two runs is to be compared.

    Raises:
        ValueError: the run's folder is not known, not here, or another run's by now, or its sound is gone.
    """
    if STREAM_SECONDS not in run.metrics:
        return {}
    told = run.tags.get(FOLDER_TAG)
    if told is None:
        raise ValueError(
            f"run {run.run_id} ({run.experiment}, {run.arm}) has no tag {FOLDER_TAG}: it is older than that tag; name "
            f"the folder that it left instead, LABEL=runs/.../{run.arm}"
        )
    folder = Path(told)
    try:
        owner = json.loads((folder / RUN_FILE).read_text())["run_id"]
    except OSError:
        owner = None
    if owner != run.run_id:
        raise ValueError(
            f"the streams of run {run.run_id} ({run.experiment}, {run.arm}) are not in {folder} on this machine; they "
            "are too large for the store: copy the folder there, or run it again"
        )
    return {f"seed{run.seed}/{name}": stream for name, stream in streams_in(folder).items()}


def has_streams(folder: Path) -> bool:
    return (folder / STREAMS_FOLDER).is_dir()


def streams_in(folder: Path) -> dict[str, LongStream]:
    """{name: stream} of an arm's folder, of streams whose sound was kept.

    Raises:
        ValueError: none has, or a sound cannot be read.
    """
    found = {
        f"stream {audio.parent.name}": _opened(audio)
        for audio in sorted((folder / STREAMS_FOLDER).glob(f"*/{AUDIO_FILE}"))
    }
    if not found:
        raise ValueError(f"{folder} has no {STREAMS_FOLDER}/*/{AUDIO_FILE}: the sound is gone; run it again")
    return found


def hear_the_same(streams: Sequence[LongStream]) -> bool:
    """Whether all of them hear the same turns in the same order, as far as the shortest goes."""
    count = min(len(stream.heard) for stream in streams)
    return count > 0 and len({tuple(turn.utterance_id for turn in stream.heard[:count]) for stream in streams}) == 1


def _opened(audio: Path) -> LongStream:
    try:
        with soundfile.SoundFile(audio) as file:
            seconds, rate_hz = file.frames / file.samplerate, int(file.samplerate)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise ValueError(f"{audio} is no sound file that can be read ({error}); speak the stream again") from error
    path = audio.with_name(HEARD_FILE)
    heard: tuple[HeardTurn, ...] = ()
    if path.is_file():
        with path.open(newline="") as file:
            heard = tuple(
                HeardTurn(
                    utterance_id=row["utterance_id"], start_s=float(row["start_s"]),
                    reply_due_s=float(row["reply_due_s"]),
                )
                for row in csv.DictReader(file)
            )  # fmt: skip
    return LongStream(audio=audio, seconds=seconds, rate_hz=rate_hz, heard=heard)
