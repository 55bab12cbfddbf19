"""espeak-ng as an engine: formant synthesis, no weights, hundreds of times faster than real time on one core."""

from __future__ import annotations

import numpy as np

from backbones.speech.espeak import EspeakError, EspeakVoice, SpeakingProcess
from backbones.tts.interface import PAUSE_S, SAMPLE_RATE_HZ, SentenceEngine, Unreadable
from backbones.tts.text import SENTENCE_LIMIT_CHARACTERS


class EspeakEngine(SentenceEngine):
    """A voice of espeak-ng, with a process of its own; the same sentence always has the same samples.

    language, variant, words_per_minute, pitch: of `backbones.speech.espeak.EspeakVoice`. It reads numbers in the
    language by its own rules. Raises ValueError where the library or the voice is missing, and `say` EspeakError where
    the library fails on a sentence.
    """

    name = "espeak"

    def __init__(
        self,
        *,
        language: str = "en-us",
        variant: str = "",
        words_per_minute: int = 190,
        pitch: int = 50,
        unreadable: Unreadable = "refuse",
        pause_s: float = PAUSE_S,
        limit_characters: int = SENTENCE_LIMIT_CHARACTERS,
    ) -> None:
        super().__init__(language, unreadable, pause_s, limit_characters, spells_numbers=False)
        self._espeak_voice = EspeakVoice(
            language=language, variant=variant, words_per_minute=words_per_minute, pitch=pitch
        )
        self.voice = f"espeak {self._espeak_voice.name}, {words_per_minute} words a minute, pitch {pitch}"
        try:
            self._process = SpeakingProcess(self._espeak_voice, SAMPLE_RATE_HZ)
        except EspeakError as error:
            raise ValueError(f"engine 'espeak' cannot speak: {error}") from error

    def _samples(self, words: str) -> np.ndarray:
        if not self._process.is_alive:  # the sentence that ended it has raised: go on with the next
            self._process = SpeakingProcess(self._espeak_voice, SAMPLE_RATE_HZ)
        return self._process.speak(words)
