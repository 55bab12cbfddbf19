"""Transcripts beside recordings: WebVTT and SubRip with times and speakers, plain text, LibriSpeech's .trans.txt."""

from __future__ import annotations

import html
import re
from pathlib import Path

import webvtt
from webvtt.errors import MalformedCaptionError, MalformedFileError
from webvtt.models import Timestamp

from experiments.recordings.source_files import Cue, Transcript

TRANSCRIPT_SUFFIXES = (".vtt", ".srt", ".txt")
"""In the order in which they are preferred: times first."""

LIBRISPEECH_SUFFIX = ".trans.txt"

_VOICE = re.compile(r"<v(?:\.[^\s>]+)*\s+([^>]+)>")
_TAG = re.compile(r"<[^>]*>")
_NAMED = re.compile(r"^\s*([A-Z][\w .'-]{0,30}):\s+")


def read_transcript(path: Path) -> Transcript:
    """ValueError where the file is no text, of another format than its suffix says, or holds no words."""
    text = _read_text(path)
    if path.suffix == ".txt":
        words = " ".join(text.split())
        if not words:
            raise ValueError(f"{path} holds no words; write some or delete it")
        return Transcript(source=str(path), text=words)
    try:
        captions = webvtt.from_string(text) if path.suffix == ".vtt" else webvtt.from_string(_as_vtt(text))
    except (MalformedFileError, MalformedCaptionError) as error:
        raise ValueError(f"{path} is no readable {path.suffix[1:]} file ({error}); export it again") from error
    cues = tuple(cue for caption in captions if (cue := _cue(caption)).text)
    if not cues:
        raise ValueError(f"{path} holds no words with times; export it again or delete it")
    return Transcript(source=str(path), cues=tuple(sorted(cues, key=lambda cue: (cue.start_s, cue.end_s))))


def read_librispeech(path: Path) -> dict[str, str]:
    """Text by utterance id of a LibriSpeech .trans.txt; ValueError where a line is not "ID TEXT"."""
    texts: dict[str, str] = {}
    for number, line in enumerate(_read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        identifier, _, words = line.strip().partition(" ")
        if not words.strip():
            raise ValueError(f"{path}:{number} has no words after {identifier!r}; each line is an id, then the words")
        texts[identifier] = words.strip()
    return texts


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from error


def _as_vtt(subrip: str) -> str:
    """SubRip differs from WebVTT in the decimal comma and the header."""
    times = re.sub(r"(\d{2}:\d{2}:\d{2}),(\d{3})", r"\1.\2", subrip.replace("\r\n", "\n"))
    return "WEBVTT\n\n" + times.lstrip("\n")


def _cue(caption: webvtt.Caption) -> Cue:
    """One caption; the speaker from <v Name> or a leading "Name: "."""
    raw = caption.raw_text
    voice = _VOICE.search(raw)
    text = html.unescape(" ".join(_TAG.sub("", raw).split()))
    speaker = voice.group(1).strip() if voice else ""
    if not speaker and (named := _NAMED.match(text)):
        speaker, text = named.group(1).strip(), text[named.end() :].strip()
    return Cue(start_s=_seconds(caption.start_time), end_s=_seconds(caption.end_time), text=text, speaker=speaker)


def _seconds(time: Timestamp) -> float:
    """The package's own `in_seconds` leaves the milliseconds out."""
    return time.hours * 3600 + time.minutes * 60 + time.seconds + time.milliseconds / 1000
