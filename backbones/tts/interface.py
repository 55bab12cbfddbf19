"""What every engine that speaks has in common: a text goes in, sentences come out as 24 kHz mono, one by one."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from backbones.tts import text as reading

SAMPLE_RATE_HZ = 24_000
PAUSE_S = 0.25
"""Silence after each sentence, which takes the place of one without a word too."""

Unreadable = Literal["refuse", "skip"]


@dataclass(frozen=True, kw_only=True, eq=False)
class SpokenSentence:
    """A sentence as it stood in the text, and its sound: `samples` (N,) float32 mono in [-1, 1] at 24,000 Hz."""

    text: str
    samples: np.ndarray

    def __post_init__(self) -> None:
        if self.samples.ndim != 1 or self.samples.dtype != np.float32:
            raise ValueError(
                f"samples of {self.text[:60]!r} must be (N,) float32, got {self.samples.shape} {self.samples.dtype}"
            )
        peak = float(np.abs(self.samples).max(initial=0.0))
        if not peak <= 1.0:  # NaN too
            raise ValueError(f"samples of {self.text[:60]!r} must be finite and in [-1, 1], their peak is {peak}")

    @property
    def duration_s(self) -> float:
        return len(self.samples) / SAMPLE_RATE_HZ


class TTSEngine(Protocol):
    """An engine with its voice. `name` is that of `load_engine`; `voice` says all that decides how it sounds."""

    name: str
    voice: str

    def speak(self, text: str | Iterable[str]) -> Iterator[SpokenSentence]:
        """The text sentence by sentence, lazily. Pieces of text (tokens, say) are spoken while they come in.

        Raises ValueError for a text without a visible character, and for what the voice cannot read.
        """
        ...

    def sentences(self, text: str | Iterable[str]) -> Iterator[str]:
        """The sentences that `speak` would say, without saying them."""
        ...

    def say(self, sentence: str) -> SpokenSentence:
        """One sentence, which is not split again, always with the same samples."""
        ...


class SentenceEngine(ABC):
    """An engine that says sentences one at a time, whatever it says them with: children give `_samples`.

    language: of the text, such as "en-us". unreadable: what becomes of characters that no voice of that language reads
    (emoji, other scripts): "refuse" raises, "skip" leaves them out of the sound and keeps them in the transcript.
    spells_numbers: give `_samples` English numbers in words.
    """

    name: str
    voice: str

    def __init__(
        self, language: str, unreadable: Unreadable, pause_s: float, limit_characters: int, spells_numbers: bool
    ) -> None:
        if unreadable not in ("refuse", "skip"):
            raise ValueError(f"unreadable is {unreadable!r}; it is 'refuse' or 'skip'")
        if not 0 <= pause_s <= 60:
            raise ValueError(f"pause_s is {pause_s}; the silence after a sentence is 0 to 60 seconds")
        self._language, self._unreadable, self._pause_s = language, unreadable, pause_s
        self._limit_characters, self._spells_numbers = limit_characters, spells_numbers

    @abstractmethod
    def _samples(self, words: str) -> np.ndarray:
        """Samples (N,) float32 at 24 kHz of a cleaned sentence with a word in it."""

    def sentences(self, text: str | Iterable[str]) -> Iterator[str]:
        if isinstance(text, str):
            if not text.strip():
                raise ValueError("there is nothing to speak: the text is empty; give at least one word")
            return reading.sentences([text], self._language, self._limit_characters)
        return self._sentences_of_pieces(text)

    def speak(self, text: str | Iterable[str]) -> Iterator[SpokenSentence]:
        return map(self.say, self.sentences(text))

    def say(self, sentence: str) -> SpokenSentence:
        words = self._words(sentence)
        spoken = self._samples(words) if words else np.zeros(0, dtype=np.float32)
        pause = np.zeros(round(self._pause_s * SAMPLE_RATE_HZ), dtype=np.float32)
        return SpokenSentence(text=sentence, samples=np.concatenate([spoken, pause]))

    def _sentences_of_pieces(self, pieces: Iterable[str]) -> Iterator[str]:
        nothing = True
        for sentence in reading.sentences(pieces, self._language, self._limit_characters):
            nothing = False
            yield sentence
        if nothing:
            raise ValueError("there is nothing to speak: no piece of the text had a visible character")

    def _words(self, sentence: str) -> str:
        """What is handed to the engine; empty where the sentence is a pause."""
        words = reading.cleaned(sentence)
        unreadable = reading.unreadable_characters(words, self._language)
        if unreadable and self._unreadable == "refuse":
            raise ValueError(
                f"{self.name} cannot read {', '.join(map(repr, unreadable[:8]))} in {sentence[:80]!r}: no voice of "
                f"language {self._language!r} does; write it in words, give another language, or "
                "unreadable='skip' to leave it out"
            )
        words = reading.without_unreadable(words, self._language)
        if not reading.has_word(words):
            return ""
        return reading.numbers_in_words(words, self._language) if self._spells_numbers else words


def file_in(folder: Path, *names: str, engine: str) -> Path:
    """The first of these files that the folder has; ValueError where it has none."""
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise ValueError(f"engine {engine!r} needs {' or '.join(names)} in {folder}; it is not there")


def fingerprint(*files: Path) -> str:
    """Twelve hex digits that tell these files' contents from others."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:12]
