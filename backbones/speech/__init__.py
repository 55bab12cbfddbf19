"""Audio in and out, log-mel, k-means units, and sound from units without a vocoder."""

from backbones.speech.audio import (
    SPEECH_SAMPLE_RATE_HZ,
    Audio,
    SkippedFile,
    read_audio,
    read_audio_files,
    stream_audio,
    write_audio,
)
from backbones.speech.mel import MEL_FRAME_RATE_HZ, log_mel, log_mel_windows
from backbones.speech.units import FRAMES_PER_UNIT, UNIT_RATE_HZ, UnitCodebook, collapse_repeats, expand_repeats

__all__ = [
    "FRAMES_PER_UNIT",
    "MEL_FRAME_RATE_HZ",
    "SPEECH_SAMPLE_RATE_HZ",
    "UNIT_RATE_HZ",
    "Audio",
    "SkippedFile",
    "UnitCodebook",
    "collapse_repeats",
    "expand_repeats",
    "log_mel",
    "log_mel_windows",
    "read_audio",
    "read_audio_files",
    "stream_audio",
    "write_audio",
]
