"""What the processes that speak run: espeak-ng itself, and a fork of the process for every sentence.

Run as a script, by path, so it imports nothing of this project: `backbones.speech.espeak` starts it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import struct
import sys
import tempfile
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

SAMPLE_RATE_HZ = 16_000
"""Rate of every file written; the engine itself speaks at 22,050 Hz."""

ENGINE_SAMPLE_RATE_HZ = 22_050

INSTALL_HINT = "espeak-ng is not installed: run `pip install espeakng-loader` (a wheel with the library and its voices)"

_OUTPUT_SYNCHRONOUS = 2  # espeak_AUDIO_OUTPUT of speak_lib.h: samples go to the callback before espeak_Synth returns
_CHARS_UTF8 = 1
_PARAMETER_RATE, _PARAMETER_PITCH = 1, 3
_RANDOM_SEED = 1
_ENGINE_PATH_LIMIT = 130  # speak_lib copies the data path into 160 bytes and appends file names to it, cutting silently
_EDGE_SILENCE_S = 0.05
_EDGE_LEVEL = 10 ** (-50 / 20)
SENTENCE_BY_SENTENCE = "--sentence-by-sentence"
ANSWER = struct.Struct("<?q")  # of a SpeakingProcess: is it an error message? how many bytes follow

_SynthCallback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class EspeakError(RuntimeError):
    """espeak-ng is missing, lacks a voice, or failed to speak."""


def check_number(name: str, given: object, whole: bool) -> None:
    """Raises ValueError unless `given` is an int (or, where `whole` is false, a float); True is no number."""
    if type(given) is not int and (whole or type(given) is not float):
        raise ValueError(f"{name} must be a {'whole ' if whole else ''}number, got {given!r}")


@dataclass(frozen=True, kw_only=True)
class EspeakVoice:
    """One way of speaking.

    language: a voice of the engine, such as "en-us". variant: a file of its `voices/!v`, such as "f3"; empty for none.
    words_per_minute: 80 to 450. pitch: 0 to 99, 50 is the voice's own.
    """

    language: str = "en-us"
    variant: str = ""
    words_per_minute: int = 190
    pitch: int = 50

    def __post_init__(self) -> None:
        check_number("words_per_minute", self.words_per_minute, whole=True)
        check_number("pitch", self.pitch, whole=True)
        if not 80 <= self.words_per_minute <= 450:
            raise ValueError(f"words_per_minute is {self.words_per_minute}; espeak-ng speaks at 80 to 450")
        if not 0 <= self.pitch <= 99:
            raise ValueError(f"pitch is {self.pitch}; it must be 0 to 99")

    @property
    def name(self) -> str:
        """The engine's name for it: "en-us+f3"."""
        return f"{self.language}+{self.variant}" if self.variant else self.language


def find_engine() -> tuple[ctypes.CDLL, Path]:
    try:
        import espeakng_loader  # optional engine: the message says how to get it
    except ModuleNotFoundError as error:
        raise EspeakError(INSTALL_HINT) from error
    try:
        return ctypes.CDLL(espeakng_loader.get_library_path()), Path(espeakng_loader.get_data_path())
    except (OSError, RuntimeError) as error:
        raise EspeakError(f"{INSTALL_HINT} ({error})") from error


@contextlib.contextmanager
def short_data_path(data_path: Path) -> Generator[Path]:
    """`data_path`, or for as long as needed a short link to it where the engine would cut it."""
    if len(os.fsencode(data_path)) <= _ENGINE_PATH_LIMIT:
        yield data_path
        return
    with tempfile.TemporaryDirectory(prefix="es") as scratch:
        link = Path(scratch) / "espeak-ng-data"
        if len(os.fsencode(link)) > _ENGINE_PATH_LIMIT:
            raise EspeakError(
                f"espeak-ng cannot read data from {data_path} (over {_ENGINE_PATH_LIMIT} characters), and the "
                f"temporary folder {scratch} is too long for a link to it: set TMPDIR to a short path"
            )
        link.symlink_to(data_path, target_is_directory=True)
        yield link


def start_engine(library: ctypes.CDLL, data_path: Path) -> None:
    rate_hz = library.espeak_Initialize(_OUTPUT_SYNCHRONOUS, 0, os.fsencode(data_path), 0)
    if rate_hz != ENGINE_SAMPLE_RATE_HZ:
        raise EspeakError(f"espeak-ng did not start on {data_path} (it answered {rate_hz}); {INSTALL_HINT}")


def set_voice(library: ctypes.CDLL, data_path: Path, voice: EspeakVoice) -> None:
    """Make a started engine speak in this voice. To be called once per process: traces of an earlier voice remain."""
    if voice.variant and not (data_path / "voices" / "!v" / voice.variant).is_file():
        # The engine itself would fall back to the plain voice without a word.
        raise EspeakError(
            f"espeak-ng has no voice variant {voice.variant!r}; f1 to f5 and m1 to m8 are among those it has"
        )
    if library.espeak_SetVoiceByName(voice.name.encode()) != 0:
        raise EspeakError(f"espeak-ng has no voice {voice.name!r}; `en-us` and `en-gb-x-rp` are two of those it has")
    library.espeak_SetParameter(_PARAMETER_RATE, voice.words_per_minute, 0)
    library.espeak_SetParameter(_PARAMETER_PITCH, voice.pitch, 0)
    library.espeak_ng_SetRandSeed(ctypes.c_long(_RANDOM_SEED))  # espeak_Initialize has seeded from the clock


def speak_once(library: ctypes.CDLL, text: str) -> np.ndarray:
    """Samples (N,) float32 at 22.05 kHz. To be called once per process: the next sentence would depend on this one."""
    pieces: list[np.ndarray] = []

    def keep(samples: ctypes._Pointer[ctypes.c_short], count: int, _events: int | None) -> int:
        if samples and count > 0:
            pieces.append(np.ctypeslib.as_array(samples, (count,)).astype(np.float32) / 32768)
        return 0

    callback = _SynthCallback(keep)
    library.espeak_SetSynthCallback(callback)
    utf8 = text.encode() + b"\0"
    if library.espeak_Synth(utf8, ctypes.c_size_t(len(utf8)), 0, 0, 0, _CHARS_UTF8, None, None) != 0 or not pieces:
        raise EspeakError(f"espeak-ng could not speak {text!r}")
    return np.concatenate(pieces)


def _write_speech(samples: np.ndarray, path: Path, text: str) -> None:
    soundfile.write(path, _at_rate(samples, SAMPLE_RATE_HZ, text), SAMPLE_RATE_HZ, subtype="PCM_16")


def _at_rate(samples: np.ndarray, rate_hz: int, text: str) -> np.ndarray:
    """Resampled from 22.05 kHz, with at most 50 ms of the engine's own silence at either end."""
    speech = soxr.resample(samples, ENGINE_SAMPLE_RATE_HZ, rate_hz)
    loud = np.flatnonzero(np.abs(speech) > _EDGE_LEVEL)
    if not len(loud):
        raise EspeakError(f"espeak-ng said nothing for {text!r}: is there a word in it?")
    edge = round(_EDGE_SILENCE_S * rate_hz)
    return np.clip(speech[max(0, loud[0] - edge) : loud[-1] + edge], -1, 1)


def _in_fork(work: Callable[[], None]) -> bool:
    """Run `work` in a copy of this process; False when it failed (it has then said why on stderr)."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        except (EspeakError, OSError, soundfile.LibsndfileError) as error:
            print(error, file=sys.stderr, flush=True)
        finally:
            sys.stdout.flush()
            os._exit(status)
    return os.waitpid(child, 0)[1] == 0


def _speak_jobs_of_one_voice(
    library: ctypes.CDLL, data_path: Path, voice: EspeakVoice, jobs: list[dict[str, Any]]
) -> None:
    # The voice is set before the forks: loading its dictionary takes longer (20 ms) than speaking a sentence.
    set_voice(library, data_path, voice)
    for job in jobs:
        text = job["text"]
        if not _in_fork(lambda text=text, path=Path(job["path"]): _write_speech(speak_once(library, text), path, text)):
            os._exit(1)
        print(job["index"], flush=True)


def _answer_with(content: bytes, failed: bool = False) -> None:
    sys.stdout.buffer.write(ANSWER.pack(failed, len(content)) + content)
    sys.stdout.buffer.flush()


def _speak_sentence_by_sentence() -> None:
    """Answers every line of standard input: first the voice, then a sentence each."""
    told = json.loads(sys.stdin.readline())
    try:
        library, full_data_path = find_engine()
        with short_data_path(full_data_path) as data_path:
            start_engine(library, data_path)
            set_voice(library, data_path, EspeakVoice(**told["voice"]))
            _answer_with(b"")
            for line in sys.stdin:
                _answer_from_fork(library, json.loads(line), told["sample_rate_hz"])
    except EspeakError as error:
        _answer_with(str(error).encode(), failed=True)


def _answer_from_fork(library: ctypes.CDLL, text: str, rate_hz: int) -> None:
    def work() -> None:
        try:
            speech = _at_rate(speak_once(library, text), rate_hz, text)
        except EspeakError as error:
            _answer_with(str(error).encode(), failed=True)
        else:
            _answer_with(speech.tobytes())

    if not _in_fork(work):
        sys.exit(f"espeak-ng died while it spoke {text!r}")  # it may have left half an answer: say no more


def _main() -> None:
    if SENTENCE_BY_SENTENCE in sys.argv[1:]:
        _speak_sentence_by_sentence()
        return
    jobs_by_voice: dict[EspeakVoice, list[dict[str, Any]]] = {}
    for job in json.load(sys.stdin):
        jobs_by_voice.setdefault(EspeakVoice(**job["voice"]), []).append(job)
    try:
        library, full_data_path = find_engine()
        with short_data_path(full_data_path) as data_path:
            start_engine(library, data_path)
            for voice, jobs in jobs_by_voice.items():
                if not _in_fork(
                    lambda voice=voice, jobs=jobs: _speak_jobs_of_one_voice(library, data_path, voice, jobs)
                ):
                    sys.exit(1)
    except EspeakError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    _main()
