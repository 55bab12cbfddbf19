"""One group of streams to disk: sound and subtitles as they come, symbols, and what every piece took."""

from __future__ import annotations

import csv
import json
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path

import numpy as np
import soxr
from tqdm import tqdm

from backbones.tts import SAMPLE_RATE_HZ, SpeechWriter, SpokenSentence
from experiments.harness.memory import held_bytes
from experiments.harness.stopping import InterruptedRunError, StopRequest
from experiments.quality.windows import SymbolBlock
from experiments.spoken.speaking import HeardTurn, SaidPiece, Speaker

SYMBOLS_FILE, HEARD_FILE, PIECES_FILE = "symbols.npz", "heard.csv", "pieces.jsonl"
SECONDS_BETWEEN_LINES = 60.0


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One piece of a stream. held_bytes: of the group's streams together. resident_bytes: of the whole process."""

    end_s: float
    duration_s: float
    positions: int
    compute_s: float
    first_audio_ms: float | None
    held_bytes: int
    resident_bytes: int


@dataclass(frozen=True, kw_only=True, eq=False)
class StreamOnDisk:
    """A finished stream: its folder, symbols and pieces."""

    folder: Path
    symbols: SymbolBlock
    pieces: tuple[Piece, ...]

    @property
    def duration_s(self) -> float:
        return self.pieces[-1].end_s

    @property
    def audio(self) -> Path:
        return self.folder / "speech.wav"


def is_spoken(folder: Path) -> bool:
    """Whether a stream came to its end: its pieces are written last."""
    return (folder / PIECES_FILE).is_file()


def speak_group(
    speaker: Speaker, indices: Sequence[int], folders: Sequence[Path], seed: int, stream_s: float, stop: StopRequest,
    label: str, line: int = 0,
) -> None:  # fmt: skip
    """Speaks streams to folders, one each, until all are `stream_s` long.

    The sound plays at any moment (`backbones.tts.SpeechWriter`). Killed and started again, the streams are computed
    anew, from the same seed, and what is on disk is compared and left as it is.

    Raises:
        InterruptedRunError: the stop was asked for.
        ValueError: a folder holds another stream. OSError: the disk is full; what was said before is whole.
    """
    said = [_Stream() for _ in folders]
    with ExitStack() as open_files:
        writers = [
            open_files.enter_context(SpeechWriter(folder, voice=speaker.sounds_like, resume=True)) for folder in folders
        ]
        progress = open_files.enter_context(_Progress(label, stream_s, line))
        for pieces in speaker.speak(indices, seed, stream_s):
            held, resident = speaker.held_bytes(), held_bytes()
            for writer, stream, piece in zip(writers, said, pieces, strict=True):
                _write(writer, piece)
                stream.add(piece, held, resident)
            progress.show(said[0])
            if stop.is_asked:
                raise InterruptedRunError(f"stopped after {said[0].end_s:.0f} of {stream_s:g} s; resumed, it goes on")
        for writer in writers:
            writer.finish()
    for folder, stream in zip(folders, said, strict=True):
        stream.write(folder)


def read_stream(folder: Path) -> StreamOnDisk:
    """What `speak_group` left."""
    pieces = tuple(Piece(**json.loads(line)) for line in (folder / PIECES_FILE).read_text().splitlines())
    with np.load(folder / SYMBOLS_FILE) as arrays:
        block = SymbolBlock(symbols=arrays["symbols"], seconds=arrays["seconds"], end_s=pieces[-1].end_s)
    return StreamOnDisk(folder=folder, symbols=block, pieces=pieces)


class _Stream:
    """What is kept of a stream while it is spoken: its symbols, and a few numbers for each piece."""

    def __init__(self) -> None:
        self.end_s = 0.0
        self.compute_s = 0.0
        self._pieces: list[Piece] = []
        self._symbols: list[np.ndarray] = []
        self._seconds: list[np.ndarray] = []
        self._heard: list[HeardTurn] = []

    def add(self, piece: SaidPiece, held: int, resident: int) -> None:
        self._symbols.append(piece.symbols)
        self._seconds.append(piece.seconds)
        self._heard += piece.heard
        self._pieces.append(
            Piece(
                end_s=piece.end_s,
                duration_s=piece.end_s - self.end_s,
                positions=piece.positions,
                compute_s=piece.compute_s,
                first_audio_ms=piece.first_audio_ms,
                held_bytes=held,
                resident_bytes=resident,
            )
        )
        self.end_s = piece.end_s
        self.compute_s += piece.compute_s

    def write(self, folder: Path) -> None:
        np.savez(folder / SYMBOLS_FILE, symbols=np.concatenate(self._symbols), seconds=np.concatenate(self._seconds))
        with (folder / HEARD_FILE).open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(field.name for field in fields(HeardTurn))
            rows.writerows(astuple(turn) for turn in self._heard)
        temporary = folder / f"{PIECES_FILE}.new"
        temporary.write_text("".join(json.dumps(asdict(piece)) + "\n" for piece in self._pieces))
        temporary.replace(folder / PIECES_FILE)


class _Progress:
    """A bar on a terminal; elsewhere a line a minute."""

    def __init__(self, label: str, stream_s: float, line: int) -> None:
        self._label, self._stream_s = label, stream_s
        self._bar = tqdm(
            total=round(stream_s), desc=label, unit="s said", position=line, disable=not sys.stderr.isatty()
        )
        self._last_line = time.monotonic()

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def show(self, stream: _Stream) -> None:
        self._bar.update(max(0, min(round(stream.end_s), round(self._stream_s)) - self._bar.n))
        if self._bar.disable and time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            print(
                f"{self._label}: {stream.end_s:.0f} of {self._stream_s:g} s said, {stream.compute_s / stream.end_s:.3f}"
                " s of compute a second",
                flush=True,
            )


def _write(writer: SpeechWriter, piece: SaidPiece) -> None:
    if writer.skips(piece.text):
        return
    samples = piece.samples
    if piece.sample_rate_hz != SAMPLE_RATE_HZ:
        samples = soxr.resample(samples, piece.sample_rate_hz, SAMPLE_RATE_HZ)
    # Griffin-Lim and the resampling may pass full scale by a little.
    writer.append(SpokenSentence(text=piece.text, samples=np.clip(samples, -1.0, 1.0).astype(np.float32)))
