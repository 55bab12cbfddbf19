"""What a source holds before any sound is read: recordings, the files they consist of, their words, and drops."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Cue:
    """Words with their times, in seconds from the start of the file. speaker: "" where it is not told.

    channel: which channel of the file is meant; None where it is not told.
    """

    start_s: float
    end_s: float
    text: str
    speaker: str = ""
    channel: int | None = None


@dataclass(frozen=True, kw_only=True)
class Transcript:
    """What is said in a file: timed `cues`, or `text` without times. source: the file that says so."""

    source: str
    cues: tuple[Cue, ...] = ()
    text: str = ""
    speaker: str = ""


@dataclass(frozen=True, kw_only=True)
class SoundFile:
    """One file of sound. is_utterance: it is one turn by itself, as LibriSpeech's files are."""

    path: Path
    size_bytes: int
    modified_ns: int
    transcript: Transcript | None = None
    is_utterance: bool = False


@dataclass(frozen=True, kw_only=True)
class SourceRecording:
    """A recording: mostly one file; several where a conversation or chapter was stored utterance by utterance."""

    name: str
    files: tuple[SoundFile, ...]

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


@dataclass(frozen=True, kw_only=True)
class Drop:
    """Something that is not in the set, and why. what: "file", "transcript" or "words"."""

    what: str
    path: str
    reason: str
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class FoundSource:
    """What a source holds. ignored: files that are neither sound nor transcript, counted by suffix."""

    recordings: tuple[SourceRecording, ...]
    drops: tuple[Drop, ...]
    ignored: dict[str, int]


def sound_file(path: Path, transcript: Transcript | None = None, is_utterance: bool = False) -> SoundFile:
    """Raises OSError where the file is not there or may not be looked at."""
    status = path.stat()
    return SoundFile(
        path=path, size_bytes=status.st_size, modified_ns=status.st_mtime_ns, transcript=transcript,
        is_utterance=is_utterance,
    )  # fmt: skip
