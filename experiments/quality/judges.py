"""Pretrained judges of speech on disk: what Whisper makes of it against what was written, and whether the voice stays.

    python -m experiments.quality.judges STREAM_FOLDER --whisper large-v3.pt --speaker wavlm-base-plus-sv/

Both are local files: a checkpoint of openai-whisper, and a folder of transformers with an x-vector model and its
feature extractor. What is not given is not judged, and said to be skipped.
"""

from __future__ import annotations

import argparse
import html
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from pickle import UnpicklingError

import jiwer
import numpy as np
import torch
import webvtt
from numpy.typing import NDArray
from tqdm import tqdm

from backbones.speech import SPEECH_SAMPLE_RATE_HZ, stream_audio
from experiments.harness.csv_file import write_csv
from experiments.harness.memory import device

Samples = NDArray[np.float32]
Transcribe = Callable[[Samples], str]
Embed = Callable[[Samples], NDArray[np.float64]]
"""One vector of unit length for a voice."""

WINDOW_S = 30.0
JUDGED_FILE = "judged.csv"


@dataclass(frozen=True, kw_only=True)
class JudgedWindow:
    """word_error_rate: of what was heard against what was written; NaN without words or without Whisper.
    speaker_similarity: cosine with the first window; NaN of that one, and without a speaker model."""

    start_s: float
    end_s: float
    word_error_rate: float
    speaker_similarity: float


@dataclass(frozen=True, kw_only=True)
class _Span:
    """Whole subtitles of at least a window, and their text."""

    start_s: float
    end_s: float
    text: str


def judge_speech(
    folder: Path, transcribe: Transcribe | None, embed: Embed | None, window_s: float = WINDOW_S
) -> Iterator[JudgedWindow]:
    """Of `speech.wav` by the subtitles of `speech.vtt`: whole cues are put together until they fill a window.

    Memory is that of a window. ValueError where a file is missing or the sound ends before its text.
    """
    sound = _Sound(folder / "speech.wav")
    first: NDArray[np.float64] | None = None
    for span in _spans(folder / "speech.vtt", window_s):
        samples = sound.until(span.end_s)
        similarity = math.nan
        if embed is not None:
            voice = embed(samples)
            first = voice if first is None else first
            similarity = math.nan if voice is first else float(voice @ first)
        yield JudgedWindow(
            start_s=span.start_s,
            end_s=span.end_s,
            word_error_rate=math.nan if transcribe is None else word_error_rate(span.text, transcribe(samples)),
            speaker_similarity=similarity,
        )


def word_error_rate(written: str, heard: str) -> float:
    """Errors over words written, both as Whisper's own normaliser spells them; NaN where no word was written."""
    from whisper.normalizers import EnglishTextNormalizer

    normalised = EnglishTextNormalizer()
    reference, hypothesis = normalised(written), normalised(heard)
    has_words = any(character.isalnum() for character in reference)
    return float(jiwer.wer(reference, hypothesis)) if has_words else math.nan


def load_whisper(path: Path) -> Transcribe:
    """A checkpoint as openai-whisper publishes them (`.pt`). ValueError where the file is missing or is none."""
    import whisper

    if not path.is_file():
        raise ValueError(f"there is no Whisper checkpoint {path}; give the .pt file of a published model")
    try:
        model = whisper.load_model(str(path), device=str(device()))
    except (KeyError, TypeError, RuntimeError, EOFError, UnpicklingError) as error:
        raise ValueError(f"{path} is no checkpoint of openai-whisper: {error}") from error

    def transcribe(samples: Samples) -> str:
        options = {"language": "en", "temperature": 0.0, "condition_on_previous_text": False, "fp16": False}
        return str(model.transcribe(samples, **options)["text"])

    return transcribe


def load_speaker_model(folder: Path) -> Embed:
    """A local folder of transformers, such as WavLM's for speaker verification. ValueError where it is none."""
    from transformers import AutoFeatureExtractor, AutoModelForAudioXVector

    try:
        extractor = AutoFeatureExtractor.from_pretrained(folder, local_files_only=True)
        model = AutoModelForAudioXVector.from_pretrained(folder, local_files_only=True).eval().to(device())
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} holds no x-vector model with its feature extractor: {error}") from error

    @torch.no_grad()
    def embed(samples: Samples) -> NDArray[np.float64]:
        inputs = extractor(samples, sampling_rate=SPEECH_SAMPLE_RATE_HZ, return_tensors="pt").to(device())
        vector = model(**inputs).embeddings[0].double().cpu().numpy()
        return vector / np.linalg.norm(vector)

    return embed


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; gives the exit code: 0 done, 2 the user's mistake."""
    parser = argparse.ArgumentParser(prog="python -m experiments.quality.judges", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of a stream: speech.wav and speech.vtt")
    parser.add_argument("--whisper", type=Path, metavar="FILE.pt", help="checkpoint of openai-whisper")
    parser.add_argument("--speaker", type=Path, metavar="FOLDER", help="x-vector model of transformers")
    options = parser.parse_args(arguments)
    try:
        if options.whisper is None and options.speaker is None:
            raise ValueError("name at least one judge: --whisper FILE.pt or --speaker FOLDER")
        transcribe = None if options.whisper is None else load_whisper(options.whisper)
        embed = None if options.speaker is None else load_speaker_model(options.speaker)
        judged = list(tqdm(judge_speech(options.folder, transcribe, embed), desc="judged", unit="window"))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    path = options.folder / JUDGED_FILE
    write_csv(path, [field.name for field in fields(JudgedWindow)], map(astuple, judged))
    for name, values, given in (
        ("word error rate", [each.word_error_rate for each in judged], options.whisper),
        ("speaker similarity to the first window", [each.speaker_similarity for each in judged], options.speaker),
    ):
        print(f"{name}: {_summary(values) if given is not None else 'skipped: no weights'}")
    print(f"wrote {path}")
    return 0


def _summary(values: Sequence[float]) -> str:
    told = np.array([value for value in values if math.isfinite(value)])
    if not len(told):
        return "no window has a word"
    third = max(1, len(told) // 3)
    return f"{told.mean():.3f}; first third {told[:third].mean():.3f}, last third {told[-third:].mean():.3f}"


class _Sound:
    """A sound file from its start on, at 16,000 Hz."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._blocks = stream_audio(path)
        self._waiting = np.zeros(0, np.float32)
        self._given = 0

    def until(self, end_s: float) -> Samples:
        """What lies between the last end that was asked for and this one."""
        count = round(end_s * SPEECH_SAMPLE_RATE_HZ) - self._given
        while len(self._waiting) < count:
            block = next(self._blocks, None)
            if block is None:
                short = count - len(self._waiting)
                if short > SPEECH_SAMPLE_RATE_HZ // 100:
                    raise ValueError(
                        f"{self._path} ends {short / SPEECH_SAMPLE_RATE_HZ:.2f} s before its subtitles do: they are "
                        "of another recording"
                    )
                break
            self._waiting = np.concatenate([self._waiting, block])
        samples, self._waiting = self._waiting[:count], self._waiting[count:]
        self._given += count
        return samples


def _spans(path: Path, window_s: float) -> Iterator[_Span]:
    if not path.is_file():
        raise ValueError(f"there is no {path}; give a folder with speech.wav and speech.vtt")
    start_s, texts = 0.0, list[str]()
    end_s = 0.0
    for cue in webvtt.read(path):
        texts.append(html.unescape(cue.text))
        end_s = _seconds(cue.end)
        if end_s - start_s >= window_s:
            yield _Span(start_s=start_s, end_s=end_s, text=" ".join(texts))
            start_s, texts = end_s, []
    if texts and end_s - start_s >= window_s / 3:
        yield _Span(start_s=start_s, end_s=end_s, text=" ".join(texts))


def _seconds(timestamp: str) -> float:
    hours, minutes, seconds = timestamp.split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


if __name__ == "__main__":
    sys.exit(main())
