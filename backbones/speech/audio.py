"""Audio files in and out: any rate and channel count in, 16 kHz mono out; whole or as a stream of constant memory.

Formats are those of libsndfile (wav, flac, mp3, ogg and more). Every failure is a ValueError that names the file and
what to do.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import ArrayLike, NDArray

SPEECH_SAMPLE_RATE_HZ = 16000
SOURCE_BLOCK_FRAMES = 1 << 16
WRITABLE_SUFFIXES = (".wav", ".flac")
# What writers that cannot seek back put for the length of wav data still to come: such a file is not cut short.
_UNKNOWN_WAV_BYTES = 0x7FFF0000
# mp3 lengths without a header frame are estimates, so a small difference says nothing.
_LENGTH_TOLERANCE = 0.02

Samples = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Audio:
    """A mono recording: `samples` (N,) float32, nominally in [-1, 1]; `source` says where it came from."""

    samples: Samples
    sample_rate_hz: int
    source: str

    def __post_init__(self) -> None:
        if self.samples.ndim != 1 or self.samples.dtype != np.float32:
            raise ValueError(
                f"{self.source}: samples must be (N,) float32, got {self.samples.shape} {self.samples.dtype}"
            )

    @property
    def duration_s(self) -> float:
        return len(self.samples) / self.sample_rate_hz


@dataclass(frozen=True)
class SkippedFile:
    """A file that `read_audio_files` left out, and why."""

    path: str
    reason: str


def read_audio(path: str | Path, sample_rate_hz: int = SPEECH_SAMPLE_RATE_HZ) -> Audio:
    """The whole file as mono at `sample_rate_hz`: channels averaged, rate converted by soxr at its high quality.

    ValueError if the file is missing, empty, of a format libsndfile cannot read, damaged, cut short, or holds NaN. An
    ogg file that was cut short cannot be told from a shorter one.
    """
    blocks = list(stream_audio(path, seconds=60.0, sample_rate_hz=sample_rate_hz))
    return Audio(np.concatenate(blocks), sample_rate_hz, str(path))


def stream_audio(
    path: str | Path, seconds: float = 30.0, sample_rate_hz: int = SPEECH_SAMPLE_RATE_HZ
) -> Iterator[Samples]:
    """Blocks of exactly `seconds` (the last one shorter) of what `read_audio` gives, in memory independent of the
    length.

    The file is opened at the first block, and its errors (those of `read_audio`) come then or where the damage is.
    """
    block_samples = round(seconds * sample_rate_hz)
    if block_samples < 1 or sample_rate_hz < 1:
        raise ValueError(f"a block of {seconds} s at {sample_rate_hz} Hz holds no sample; give more")
    waiting: list[Samples] = []
    count, given = 0, 0
    for piece in _converted(Path(path), sample_rate_hz):
        waiting.append(piece)
        count += len(piece)
        if count < block_samples:
            continue
        joined = np.concatenate(waiting)
        whole = count - count % block_samples
        for start in range(0, whole, block_samples):
            yield joined[start : start + block_samples].copy()
            given += 1
        waiting, count = [joined[whole:]], count - whole
    if count:
        yield np.concatenate(waiting)
    elif not given:
        raise ValueError(f"{path} is too short: not one sample at {sample_rate_hz} Hz; leave it out")


def read_audio_files(
    paths: Iterable[str | Path], skip_bad: bool = False, sample_rate_hz: int = SPEECH_SAMPLE_RATE_HZ
) -> tuple[list[Audio], list[SkippedFile]]:
    """All files in order. A bad one raises; with `skip_bad` the bad ones are listed with their reasons instead."""
    audios: list[Audio] = []
    skipped: list[SkippedFile] = []
    for path in paths:
        try:
            audios.append(read_audio(path, sample_rate_hz))
        except ValueError as error:
            if not skip_bad:
                raise
            skipped.append(SkippedFile(str(path), str(error)))
    return audios, skipped


def write_audio(path: str | Path, samples: ArrayLike, sample_rate_hz: int) -> float:
    """Writes (N,) mono or (N, channels) samples as 16-bit wav or flac, by the path's suffix; gives the gain it applied.

    The gain is 1 unless a peak beyond full scale would clip: then the whole is scaled down to it. ValueError on NaN or
    Inf, on no samples, and on another suffix.
    """
    path = Path(path)
    values = np.asarray(samples)
    if path.suffix.lower() not in WRITABLE_SUFFIXES:
        raise ValueError(f"cannot write {path}: the name must end in one of {', '.join(WRITABLE_SUFFIXES)}")
    if values.ndim not in (1, 2) or values.size == 0:
        raise ValueError(f"cannot write {path}: expected samples (N,) or (N, channels), got shape {values.shape}")
    if not np.issubdtype(values.dtype, np.floating):
        raise ValueError(f"cannot write {path}: expected floating samples in [-1, 1], got {values.dtype}")
    if not np.isfinite(values).all():
        raise ValueError(f"cannot write {path}: {np.count_nonzero(~np.isfinite(values))} samples are NaN or infinite")
    peak = float(np.abs(values).max())
    gain = 1.0 if peak <= 1.0 else 1.0 / peak
    soundfile.write(path, values * gain, sample_rate_hz, subtype="PCM_16")
    return gain


def _converted(path: Path, sample_rate_hz: int) -> Iterator[Samples]:
    """Mono pieces at the wanted rate, of whatever size the conversion gives."""
    with open_sound(path) as file:
        if file.samplerate == sample_rate_hz:
            yield from map(_mixed, source_blocks(file, path))
            return
        resampler = soxr.ResampleStream(file.samplerate, sample_rate_hz, 1, dtype="float32")
        for block in source_blocks(file, path):
            yield resampler.resample_chunk(_mixed(block))
        yield resampler.resample_chunk(np.zeros(0, dtype=np.float32), last=True)


def _mixed(block: Samples) -> Samples:
    return np.asarray(block.mean(axis=1), dtype=np.float32)


def open_sound(path: Path) -> soundfile.SoundFile:
    """The file, opened by libsndfile; the errors of `read_audio` that show before its sound is read."""
    if not path.exists():
        raise ValueError(f"no audio file at {path}; check the path")
    if not path.is_file():
        raise ValueError(f"{path} is a folder, not an audio file; give the files in it")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty (0 bytes); record or copy it again")
    try:
        file = soundfile.SoundFile(path)
    except soundfile.LibsndfileError as error:
        raise ValueError(
            f"{path} cannot be read as audio ({error.error_string}): damaged, or of a format libsndfile does not "
            "know; wav, flac, mp3 and ogg are fine, convert others first (for example `ffmpeg -i IN OUT.wav`)"
        ) from error
    if file.frames == 0:
        file.close()
        raise ValueError(f"{path} holds no samples, only a header; record or copy it again")
    cut = re.search(r"^data : (\d+) \(should be (\d+)\)", file.extra_info, re.MULTILINE)
    if cut and int(cut[2]) < int(cut[1]) < _UNKNOWN_WAV_BYTES:
        file.close()
        raise ValueError(f"{path} is cut short: it announces {cut[1]} bytes of sound, has {cut[2]}; copy it again")
    return file


def source_blocks(file: soundfile.SoundFile, path: Path) -> Iterator[Samples]:
    """Blocks (N, channels) at the file's own rate; ValueError where the sound is damaged or ends too early."""
    announced, read = file.frames, 0
    while True:
        try:
            block = file.read(SOURCE_BLOCK_FRAMES, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            at_s = read / file.samplerate
            raise ValueError(f"{path} is damaged after {at_s:.1f} s ({error.error_string}); copy it again") from error
        if not len(block):
            break
        if not np.isfinite(block).all():
            at_s = read / file.samplerate
            raise ValueError(f"{path} holds NaN or infinite samples after {at_s:.1f} s; write it again")
        read += len(block)
        yield block
    if read < announced * (1 - _LENGTH_TOLERANCE):
        raise ValueError(
            f"{path} is cut short or damaged: it announces {announced} frames and gives {read}; copy it again"
        )
