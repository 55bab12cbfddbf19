"""Speech to disk, sentence by sentence: a wav that plays at any moment, subtitles, and where to resume after a kill.

A folder holds `speech.wav` (24 kHz, 16 bit, mono), `speech.vtt` (WebVTT, a cue for each sentence) and `speech.json`
(how much of both is whole). A sentence is appended to wav and subtitles first, then counted by replacing `speech.json`:
whenever the process dies, the counted sentences are whole, and resuming cuts off what is not counted.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import html
import json
import os
import struct
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from io import BytesIO, FileIO
from pathlib import Path
from typing import Self

import numpy as np
import soundfile
from webvtt import Caption
from webvtt.models import Timestamp
from webvtt.vtt import WebVTTCueBlock

from backbones.tts.interface import SAMPLE_RATE_HZ, SpokenSentence, TTSEngine

AUDIO_FILE, SUBTITLES_FILE, STATE_FILE = "speech.wav", "speech.vtt", "speech.json"

_FORMAT_VERSION = 1
_BYTES_PER_SAMPLE = 2
_WAV_HEADER_BYTES = 44
_LONGEST_SAMPLES = (0xFFFFFFFF - _WAV_HEADER_BYTES) // _BYTES_PER_SAMPLE  # wav counts its bytes in 32 bits: 24.8 hours
_SUBTITLES_HEADER = b"WEBVTT\n"


@dataclass(frozen=True, kw_only=True)
class SpeechOnDisk:
    """Speech in a folder: its audio, subtitles, how many sentences are whole, and whether its text is at an end."""

    folder: Path
    sentences: int
    duration_s: float
    finished: bool

    @property
    def audio(self) -> Path:
        return self.folder / AUDIO_FILE

    @property
    def subtitles(self) -> Path:
        return self.folder / SUBTITLES_FILE


@dataclass(frozen=True, kw_only=True)
class _State:
    """What is whole on disk. `texts` chains the hashes of all sentences, so that another text is told from the same."""

    format: int = _FORMAT_VERSION
    voice: str
    sentences: int = 0
    samples: int = 0
    subtitle_bytes: int = len(_SUBTITLES_HEADER)
    texts: str = ""
    finished: bool = False


def write_flac(speech: SpeechOnDisk) -> Path:
    """The finished speech as `speech.flac` beside its wav, about half as large; block by block, whole or not at all."""
    if not speech.finished:
        raise ValueError(f"the speech in {speech.folder} is not finished; resume it, then compress it")
    path = speech.audio.with_suffix(".flac")
    temporary = path.with_suffix(".flac.new")
    with soundfile.SoundFile(temporary, "w", SAMPLE_RATE_HZ, channels=1, format="FLAC", subtype="PCM_16") as flac:
        for block in soundfile.blocks(speech.audio, blocksize=1 << 16, dtype="int16"):
            flac.write(block)
    return temporary.replace(path)


def speech_on_disk(folder: str | Path) -> SpeechOnDisk:
    """What a folder holds, also while another process writes it. ValueError where there is no speech in it."""
    folder = Path(folder)
    return _description(folder, _read_state(folder))


def write_speech(spoken: Iterable[SpokenSentence], folder: str | Path, resume: bool = False) -> SpeechOnDisk:
    """Writes sentences as they come, in memory that does not grow; gives what is on disk at the end.

    resume: go on with what the folder holds. `spoken` starts from its beginning all the same: sentences on disk are
    compared by text and left out. Use `speak_to_disk` where they should not even be spoken again.
    ValueError, OSError: those of `SpeechWriter`.
    """
    with SpeechWriter(folder, resume=resume) as writer:
        for sentence in spoken:
            if not writer.skips(sentence.text):
                writer.append(sentence)
        return writer.finish()


def speak_to_disk(
    engine: TTSEngine, text: str | Iterable[str], folder: str | Path, resume: bool = False
) -> SpeechOnDisk:
    """Speaks a text (whole, or pieces as they come) into a folder; with `resume` only what is not there yet.

    ValueError, OSError: those of `SpeechWriter`, and of an engine asked to resume in another voice.
    """
    sentences = engine.sentences(text)
    with SpeechWriter(folder, voice=engine.voice, resume=resume) as writer:
        for sentence in sentences:
            if not writer.skips(sentence):
                writer.append(engine.say(sentence))
        return writer.finish()


class SpeechWriter:
    """Appends sentences to the speech of a folder; use it as a context manager. One writer to a folder at a time.

    resume: go on with what the folder holds, or begin where it holds nothing. voice: what the sentences sound like,
    remembered, and compared when resuming. Raises ValueError for speech already there without `resume`, for another
    voice or text, for damaged files, for a folder that another writer has open, and beyond 24.8 hours (what a wav can
    hold). OSError where the disk is full: the sentences before are whole, and appending or resuming goes on from there.
    """

    def __init__(self, folder: str | Path, *, voice: str = "", resume: bool = False) -> None:
        self._folder = Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._passed, self._passed_texts = 0, ""
        exists = (self._folder / STATE_FILE).exists()
        if exists and not resume:
            raise ValueError(f"{self._folder} holds speech already; resume it (resume=True) or give another folder")
        self._state = _read_state(self._folder) if exists else _State(voice=voice)
        if self._state.voice != voice:
            raise ValueError(
                f"{self._folder} was spoken by {self._state.voice!r}, not {voice!r}; resume with that voice, or give "
                "another folder"
            )
        self._open_files = contextlib.ExitStack()
        try:
            self._audio = self._opened(AUDIO_FILE)
            self._subtitles = self._opened(SUBTITLES_FILE)
            if not exists:
                self._begin()
            self._cut_to_state()
        except BaseException:
            self._open_files.close()
            raise

    def skips(self, text: str) -> bool:
        """True for each sentence, from the first on, that is on disk; ValueError where it is not the one on disk."""
        if self._passed >= self._state.sentences:
            return False
        self._passed += 1
        self._passed_texts = _chained(self._passed_texts, text)
        if self._passed == self._state.sentences and self._passed_texts != self._state.texts:
            raise ValueError(
                f"the text is not the one that {self._folder} was spoken from: its first {self._passed} sentences "
                "differ somewhere; resume with that text, or give another folder"
            )
        return True

    def append(self, spoken: SpokenSentence) -> None:
        """Writes one sentence, and counts it once it is whole."""
        before = self._state
        if self._passed < before.sentences:
            raise ValueError(
                f"{self._folder} holds {before.sentences} sentences: pass each of them to `skips` before appending"
            )
        samples = before.samples + len(spoken.samples)
        if samples > _LONGEST_SAMPLES:
            raise ValueError(
                f"{self._folder}: a wav ends at 24.8 hours, and this sentence would pass it; go on in another folder"
            )
        cue = _cue(spoken.text, before.samples, samples)
        try:
            _write_at(self._audio, _WAV_HEADER_BYTES + before.samples * _BYTES_PER_SAMPLE, _pcm(spoken.samples))
            _write_wav_lengths(self._audio, samples)
            _write_at(self._subtitles, before.subtitle_bytes, cue)
            self._count(
                replace(
                    before,
                    sentences=before.sentences + 1,
                    samples=samples,
                    subtitle_bytes=before.subtitle_bytes + len(cue),
                    texts=_chained(before.texts, spoken.text),
                    finished=False,
                )
            )
        except OSError as error:
            self._cut_to_state()
            raise OSError(
                error.errno,
                f"{error.strerror} while writing sentence {before.sentences + 1} to {self._folder}; the "
                f"{before.sentences} sentences before it ({before.samples / SAMPLE_RATE_HZ:.0f} s) are whole: "
                "make room and resume",
            ) from error
        self._passed = self._state.sentences

    def finish(self) -> SpeechOnDisk:
        """States that the text is at its end. ValueError where nothing was said, or less than is on disk was passed."""
        if not self._state.sentences:
            raise ValueError(f"nothing was spoken into {self._folder}: give at least one sentence")
        if self._passed < self._state.sentences:
            raise ValueError(
                f"the text ends after {self._passed} sentences, {self._folder} holds {self._state.sentences}; resume "
                "with the text that it was spoken from"
            )
        self._count(replace(self._state, finished=True))
        return _description(self._folder, self._state)

    def close(self) -> None:
        """Closes the files; what was not finished can be resumed."""
        self._open_files.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _opened(self, name: str) -> FileIO:
        descriptor = os.open(self._folder / name, os.O_RDWR | os.O_CREAT, 0o644)
        file = self._open_files.enter_context(FileIO(descriptor, "r+b"))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"another process is writing to {self._folder}; give another folder") from error
        return file

    def _begin(self) -> None:
        # A kill before the first state leaves files without one: they are begun again.
        header = BytesIO()
        soundfile.write(header, np.zeros(0), SAMPLE_RATE_HZ, format="WAV", subtype="PCM_16")
        assert len(header.getvalue()) == _WAV_HEADER_BYTES
        _write_at(self._audio, 0, header.getvalue())
        _write_at(self._subtitles, 0, _SUBTITLES_HEADER)
        self._count(self._state)

    def _cut_to_state(self) -> None:
        """Cuts off what was written after the last counted sentence."""
        wanted_audio = _WAV_HEADER_BYTES + self._state.samples * _BYTES_PER_SAMPLE
        for file, name, wanted in (
            (self._audio, AUDIO_FILE, wanted_audio),
            (self._subtitles, SUBTITLES_FILE, self._state.subtitle_bytes),
        ):
            size = os.fstat(file.fileno()).st_size
            if size < wanted:
                raise ValueError(
                    f"{self._folder / name} has {size} bytes, {STATE_FILE} counts {wanted}: it was cut or replaced; "
                    "put it back, or begin in another folder"
                )
            file.truncate(wanted)
        _write_wav_lengths(self._audio, self._state.samples)

    def _count(self, state: _State) -> None:
        for file in (self._audio, self._subtitles):
            os.fsync(file.fileno())  # after a power cut too, no sentence is counted that is not there
        temporary = self._folder / f"{STATE_FILE}.new"
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(asdict(state), file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._folder / STATE_FILE)
        self._state = state


def _read_state(folder: Path) -> _State:
    path = folder / STATE_FILE
    if not path.exists():
        raise ValueError(f"there is no speech in {folder}: it has no {STATE_FILE}")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        state = _State(**fields)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} cannot be read ({error}); put it back, or begin in another folder") from error
    if state.format != _FORMAT_VERSION:
        raise ValueError(
            f"{path} is of format {state.format}, this code reads {_FORMAT_VERSION}; begin in another folder"
        )
    return state


def _description(folder: Path, state: _State) -> SpeechOnDisk:
    return SpeechOnDisk(
        folder=folder,
        sentences=state.sentences,
        duration_s=state.samples / SAMPLE_RATE_HZ,
        finished=state.finished,
    )


def _chained(texts: str, text: str) -> str:
    return hashlib.sha256(f"{texts}|{text}".encode()).hexdigest()


def _cue(text: str, start_samples: int, end_samples: int) -> bytes:
    """One sentence as WebVTT, whose text must not hold a line break, `<`, `&` or an arrow as they are."""
    start, end = (str(Timestamp.from_seconds(samples / SAMPLE_RATE_HZ)) for samples in (start_samples, end_samples))
    caption = Caption(start, end, html.escape(" ".join(text.split()), quote=False))
    return "".join(f"{line}\n" for line in WebVTTCueBlock.format_lines(caption)).encode()


def _pcm(samples: np.ndarray) -> bytes:
    """16-bit little-endian, scaled as libsndfile scales: 1.0 is 32768, cut to 32767."""
    return np.clip(np.rint(samples * 32768), -32768, 32767).astype("<i2").tobytes()


def _write_at(file: FileIO, position: int, content: bytes) -> None:
    # Unbuffered and in a loop: a disk that is full in the middle raises here, not when the file is closed.
    left = memoryview(content)
    while left:
        written = os.pwrite(file.fileno(), left, position)
        position, left = position + written, left[written:]


def _write_wav_lengths(file: FileIO, samples: int) -> None:
    """Sets the two lengths in the header. By hand: libsndfile does it when it closes a file, too late for a kill."""
    content_bytes = samples * _BYTES_PER_SAMPLE
    _write_at(file, 4, struct.pack("<I", _WAV_HEADER_BYTES - 8 + content_bytes))
    _write_at(file, _WAV_HEADER_BYTES - 4, struct.pack("<I", content_bytes))
