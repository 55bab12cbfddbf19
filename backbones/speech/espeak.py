"""Speech from text through espeak-ng: the same sentence in the same voice is always the same samples.

The engine is a C library with global state that outlives a sentence (pitch flutter, wave phase, random numbers): a
sentence spoken second differs in its bytes from the same sentence spoken first, even after `espeak_Terminate`, and the
library cannot be unloaded. So each sentence is spoken in a fork of a process in which nothing was spoken before (3 ms
each). The forking processes run `espeak_worker.py` as a script: they import neither torch nor the caller's `__main__`,
start in a third of a second, and work from a notebook as from a command line. A `SpeakingProcess` stays, and speaks
sentence after sentence.

espeak-ng is GPL-3 and is never vendored: the separately installed `espeakng-loader` wheel carries library and voices.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import queue
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np
import soundfile

from backbones.speech import espeak_worker
from backbones.speech.espeak_worker import EspeakError, EspeakVoice, check_number

__all__ = [
    "EspeakError",
    "EspeakVoice",
    "SpeakingProcess",
    "SpeechJob",
    "check_number",
    "engine_version",
    "speak",
    "speak_to_files",
]


@dataclass(frozen=True, kw_only=True)
class SpeechJob:
    """One sentence to speak into one 16 kHz, 16-bit, mono wav file."""

    text: str
    voice: EspeakVoice
    path: Path


def speak_to_files(jobs: Sequence[SpeechJob], processes: int) -> Iterator[int]:
    """Speak every job into its file and yield its index as it is done, in no fixed order.

    processes: engines at work at the same time. Raises EspeakError with the engine's own words when one fails.
    """
    done: queue.Queue[int | EspeakError | None] = queue.Queue()
    count = max(1, min(processes, len(jobs)))
    workers = [_start_worker([(i, jobs[i]) for i in range(k, len(jobs), count)], done) for k in range(count)]
    try:
        while count:
            report = done.get()
            if isinstance(report, EspeakError):
                raise report
            if report is None:
                count -= 1
            else:
                yield report
    finally:
        for worker, listener in workers:
            worker.kill()
            listener.join()


def speak(text: str, voice: EspeakVoice) -> np.ndarray:
    """Samples (N,) float32 in [-1, 1] at 16 kHz."""
    with tempfile.TemporaryDirectory(prefix="speak") as folder:
        path = Path(folder) / "speech.wav"
        for _ in speak_to_files([SpeechJob(text=text, voice=voice, path=path)], processes=1):
            pass
        samples, _ = soundfile.read(path, dtype="float32")
    return samples


class SpeakingProcess:
    """A process that speaks one sentence after the other in one voice, each in a fork of its own.

    sample_rate_hz: of what `speak` gives. Raises EspeakError where espeak-ng or the voice is missing. It ends with this
    object. Not for use by two threads at once.
    """

    def __init__(self, voice: EspeakVoice, sample_rate_hz: int) -> None:
        self._worker = subprocess.Popen(
            # -P as in `_start_worker`.
            [sys.executable, "-P", espeak_worker.__file__, espeak_worker.SENTENCE_BY_SENTENCE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._end = weakref.finalize(self, _end, self._worker)
        try:
            self._tell({"voice": asdict(voice), "sample_rate_hz": sample_rate_hz})
            self._answer()
        except BaseException:
            self.close()
            raise

    def speak(self, text: str) -> np.ndarray:
        """Samples (N,) float32 in [-1, 1]. EspeakError with the engine's own words; the next sentence can be spoken."""
        self._tell(text)
        return np.frombuffer(self._answer(), dtype=np.float32).copy()

    @property
    def is_alive(self) -> bool:
        return self._end.alive and self._worker.poll() is None

    def close(self) -> None:
        """Ends the process; a second call does nothing."""
        self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _tell(self, message: object) -> None:
        assert self._worker.stdin is not None
        with contextlib.suppress(BrokenPipeError, ValueError):  # it has died: the missing answer says so
            self._worker.stdin.write(json.dumps(message).encode() + b"\n")
            self._worker.stdin.flush()

    def _answer(self) -> bytes:
        assert self._worker.stdout is not None
        header = b"" if self._worker.stdout.closed else self._worker.stdout.read(espeak_worker.ANSWER.size)
        if len(header) == espeak_worker.ANSWER.size:
            failed, count = espeak_worker.ANSWER.unpack(header)
            content = self._worker.stdout.read(count)
            if len(content) == count:
                if failed:
                    raise EspeakError(content.decode())
                return content
        raise EspeakError("the process of espeak-ng has ended; start another one to go on from the sentence in hand")


def _end(worker: subprocess.Popen[bytes]) -> None:
    worker.kill()
    with contextlib.suppress(BrokenPipeError), worker:
        pass  # leaving closes its pipes and waits for it


def engine_version() -> str:
    """Version of the installed library, such as "1.52.0"."""
    library, _ = espeak_worker.find_engine()
    library.espeak_Info.restype = ctypes.c_char_p
    return library.espeak_Info(None).decode().split()[0]


def _start_worker(
    numbered_jobs: list[tuple[int, SpeechJob]], done: queue.Queue[int | EspeakError | None]
) -> tuple[subprocess.Popen[str], threading.Thread]:
    """Start a process that speaks these jobs, and a thread that passes its reports on to `done` (None at its end)."""
    # -P: this folder must not lead sys.path, or its modules would hide others of the same name.
    worker = subprocess.Popen(
        [sys.executable, "-P", espeak_worker.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )

    def pass_on() -> None:
        try:
            with worker:
                assert worker.stdin is not None and worker.stdout is not None and worker.stderr is not None
                try:
                    json.dump([{"index": i, **asdict(j), "path": str(j.path)} for i, j in numbered_jobs], worker.stdin)
                    worker.stdin.close()
                except BrokenPipeError:
                    pass  # the worker died early: its exit status and stderr below say why
                for line in worker.stdout:
                    done.put(int(line))
                complaint = worker.stderr.read().strip()
            if worker.returncode != 0:
                what = complaint.splitlines()[-1] if complaint else f"espeak-ng died (status {worker.returncode})"
                done.put(EspeakError(what))
        finally:
            done.put(None)

    listener = threading.Thread(target=pass_on, daemon=True)
    listener.start()
    return worker, listener
