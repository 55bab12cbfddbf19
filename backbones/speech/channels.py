"""Sound by channels, in blocks of constant memory, from any container: libsndfile's formats and ffmpeg's.

libsndfile reads wav, flac, mp3, ogg and their like, and knows when a wav or flac was cut short. What it does not know
(m4a, aac, wma, the sound of videos) goes through PyAV, whose wheel carries ffmpeg. Rates are converted by soxr in both.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import soundfile
import soxr
from av.error import FFmpegError

from backbones.speech.audio import SPEECH_SAMPLE_RATE_HZ, Samples, open_sound, source_blocks

_SUFFIXES = (
    ".wav .flac .mp3 .m4a .m4b .aac .ogg .oga .opus .wma .aif .aiff .aifc .au .snd .w64 .rf64 .caf .sph .amr .ac3 .mka "
    ".mp4 .m4v .mov .mkv .webm .avi"
)
SOUND_SUFFIXES = frozenset(_SUFFIXES.split())
"""By which a file says that it holds sound; whether it does is seen when it is read."""

_LENGTH_TOLERANCE = 0.02
_LENGTH_TOLERANCE_S = 1.0


@dataclass(frozen=True, kw_only=True)
class SoundFormat:
    """What a file is. codec: as "FLAC" or "mov,mp4,m4a/aac"."""

    codec: str
    sample_rate_hz: int
    channels: int


@dataclass(frozen=True, kw_only=True, eq=False)
class ChannelBlocks:
    """A file opened for reading. blocks: (N, channels) float32 at the rate that was asked for, once.

    announced_s: the length that the file claims; 0 where it does not.
    """

    format: SoundFormat
    announced_s: float
    blocks: Iterator[Samples]


def open_channels(path: str | Path, sample_rate_hz: int = SPEECH_SAMPLE_RATE_HZ) -> ChannelBlocks:
    """The file's format, and its sound in blocks of a few seconds, memory independent of the length.

    ValueError if it is missing, empty, of no format with sound that either library knows, damaged, cut short, or holds
    NaN: at once, or where the damage is. A file whose container does not tell its length can be cut short unnoticed.
    """
    path = Path(path)
    try:
        file = open_sound(path)
    except ValueError as refusal:
        # What libsndfile refuses may be one of ffmpeg's formats; what it knows and finds damaged is damaged.
        if not isinstance(refusal.__cause__, soundfile.LibsndfileError):
            raise
        own, announced_s, blocks = _opened_by_ffmpeg(path, refusal)
    else:
        own = SoundFormat(codec=f"{file.format}/{file.subtype}", sample_rate_hz=file.samplerate, channels=file.channels)
        announced_s, blocks = file.frames / file.samplerate, _closing(file, path)
    return ChannelBlocks(format=own, announced_s=announced_s, blocks=_resampled(blocks, own, sample_rate_hz))


def _closing(file: soundfile.SoundFile, path: Path) -> Iterator[Samples]:
    with file:
        yield from source_blocks(file, path)


def _resampled(blocks: Iterator[Samples], own: SoundFormat, sample_rate_hz: int) -> Iterator[Samples]:
    if own.sample_rate_hz == sample_rate_hz:
        yield from blocks
        return
    resampler = soxr.ResampleStream(own.sample_rate_hz, sample_rate_hz, own.channels, dtype="float32")
    for block in blocks:
        yield resampler.resample_chunk(block).reshape(-1, own.channels)
    yield resampler.resample_chunk(np.zeros((0, own.channels), dtype=np.float32), last=True).reshape(-1, own.channels)


def _opened_by_ffmpeg(path: Path, refusal: ValueError) -> tuple[SoundFormat, float, Iterator[Samples]]:
    try:
        container = av.open(str(path))
    except FFmpegError as error:
        raise ValueError(f"{refusal}; ffmpeg cannot read it either ({error.strerror})") from error
    if not container.streams.audio:
        found = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
        container.close()
        raise ValueError(f"{path} holds no sound, only {found} ({container.format.name}); leave it out")
    stream = container.streams.audio[0]
    announced_s = 0.0 if stream.duration is None else float(stream.duration * stream.time_base)
    context = stream.codec_context
    own = SoundFormat(
        codec=f"{container.format.name}/{context.name}",
        sample_rate_hz=context.sample_rate,
        channels=context.layout.nb_channels,
    )
    return own, announced_s, _decoded(container, own, announced_s, path)


def _decoded(
    container: av.container.InputContainer, own: SoundFormat, announced_s: float, path: Path
) -> Iterator[Samples]:
    """Blocks (N, channels) at the file's own rate. Only planar float frames: other kinds are converted to them."""
    converter = av.AudioResampler(format="fltp", rate=own.sample_rate_hz)
    read = 0
    with container:
        try:
            for frame in container.decode(container.streams.audio[0]):
                for piece in converter.resample(frame):
                    block = np.ascontiguousarray(piece.to_ndarray().T)
                    if block.shape[1] != own.channels:
                        raise ValueError(f"{path} changes its number of channels on the way; convert it to wav")
                    if not np.isfinite(block).all():
                        raise ValueError(
                            f"{path} holds NaN or infinite samples after {read / own.sample_rate_hz:.1f} s"
                        )
                    read += len(block)
                    yield block
        except FFmpegError as error:
            at_s = read / own.sample_rate_hz
            raise ValueError(f"{path} is damaged after {at_s:.1f} s ({error.strerror}); copy it again") from error
    read_s = read / own.sample_rate_hz
    if read_s < announced_s * (1 - _LENGTH_TOLERANCE) - _LENGTH_TOLERANCE_S or not read:
        raise ValueError(
            f"{path} is cut short: it announces {announced_s:.1f} s and gives {read_s:.1f} s; copy it again"
        )
