"""Speech on disk: whole from the first second to the last, whatever kills the writer, in memory that does not grow."""

from __future__ import annotations

import errno
import html
import json
import multiprocessing
import resource
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import webvtt

from backbones.speech import stream_audio
from backbones.tts import (
    SAMPLE_RATE_HZ,
    SpeechWriter,
    SpokenSentence,
    load_engine,
    speak_to_disk,
    speech_on_disk,
    write_flac,
    write_speech,
)

TEXT = "It rains. The word for the red box is tiger. No. How long is the train? It is long. The end."


def spoken(index: int, seconds: float = 0.5) -> SpokenSentence:
    """A sentence whose sound tells which one it is: a constant."""
    samples = np.full(round(seconds * SAMPLE_RATE_HZ), (index % 100 + 1) / 128, dtype=np.float32)
    return SpokenSentence(text=f"Sentence {index} <says> a --> b & c.", samples=samples)


def contents(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in ("speech.wav", "speech.vtt", "speech.json")]


def test_what_is_written_is_what_was_spoken_with_a_cue_for_each_sentence(tmp_path: Path) -> None:
    speech = write_speech((spoken(i) for i in range(5)), tmp_path / "deep" / "folder")
    samples, rate_hz = soundfile.read(speech.audio, dtype="float32")
    assert rate_hz == SAMPLE_RATE_HZ and speech.finished and speech.sentences == 5
    assert np.array_equal(samples, np.concatenate([spoken(i).samples for i in range(5)]))
    assert speech.duration_s == 2.5
    cues = list(webvtt.read(speech.subtitles))
    assert [html.unescape(cue.raw_text) for cue in cues] == [spoken(i).text for i in range(5)]
    assert [(cue.start_in_seconds, cue.end) for cue in cues][3:] == [(1, "00:00:02.000"), (2, "00:00:02.500")]
    assert speech == speech_on_disk(speech.folder)
    flac, _ = soundfile.read(write_flac(speech), dtype="float32")
    assert np.array_equal(flac, samples)


def test_the_wav_plays_after_every_sentence_while_it_is_still_written(tmp_path: Path) -> None:
    with SpeechWriter(tmp_path) as writer:
        for index in range(3):
            writer.append(spoken(index))
            heard, _ = soundfile.read(tmp_path / "speech.wav")
            assert len(heard) == (index + 1) * 12_000
            assert len(webvtt.read(tmp_path / "speech.vtt")) == index + 1
            assert not speech_on_disk(tmp_path).finished


def test_an_interrupted_speech_resumes_as_the_uninterrupted_one(tmp_path: Path) -> None:
    engine = load_engine()
    whole = speak_to_disk(engine, TEXT, tmp_path / "whole")
    said: list[str] = []

    class Interrupted:
        name, voice, sentences, speak = engine.name, engine.voice, engine.sentences, engine.speak

        def say(self, sentence: str) -> SpokenSentence:
            if len(said) == 3:
                raise KeyboardInterrupt
            said.append(sentence)
            return engine.say(sentence)

    with pytest.raises(KeyboardInterrupt):
        speak_to_disk(Interrupted(), TEXT, tmp_path / "resumed")
    assert speech_on_disk(tmp_path / "resumed").sentences == 3
    said.clear()
    speak_to_disk(Interrupted(), [TEXT[:20], TEXT[20:]], tmp_path / "resumed", resume=True)
    assert said == ["How long is the train?", "It is long.", "The end."], "nothing is spoken twice"
    assert contents(tmp_path / "resumed") == contents(whole.folder)


@pytest.mark.parametrize("step", ["audio", "lengths", "subtitles", "count"])
def test_a_kill_between_any_two_writes_loses_only_the_sentence_in_hand(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from backbones.tts import on_disk

    whole = write_speech((spoken(i) for i in range(6)), tmp_path / "whole")
    folder = tmp_path / step
    with SpeechWriter(folder) as writer:
        for index in range(3):
            writer.append(spoken(index))

    class Killed(BaseException):
        pass

    def kill(*_: object) -> None:
        raise Killed

    real_write, writes_until = on_disk._write_at, {"audio": 0, "lengths": 2, "subtitles": 3, "count": 99}[step]
    writes: list[int] = []

    def write_until(file: object, position: int, content: bytes) -> None:
        if len(writes) == writes_until:
            real_write(file, position, content[: len(content) // 2])  # torn in the middle
            raise Killed
        writes.append(position)
        real_write(file, position, content)

    with SpeechWriter(folder, resume=True) as writer, monkeypatch.context() as patched:
        assert all(writer.skips(spoken(i).text) for i in range(3))
        patched.setattr(on_disk, "_write_at", write_until)
        patched.setattr(Path, "replace", kill)
        with pytest.raises(Killed):
            writer.append(spoken(3))
    heard, _ = soundfile.read(folder / "speech.wav", dtype="float32")
    assert np.array_equal(heard[:36_000], np.concatenate([spoken(i).samples for i in range(3)])), (
        "it plays before resuming"
    )
    write_speech((spoken(i) for i in range(6)), folder, resume=True)
    assert contents(folder) == contents(whole.folder)


def test_kill_9_at_any_moment_loses_at_most_the_sentence_in_hand(tmp_path: Path) -> None:
    """A real process, really killed, several times, wherever it happens to be."""
    killed, counted = tmp_path / "killed", 0
    for wait_s in (0.0, 0.003, 0.011, 0.05):
        process = multiprocessing.get_context("fork").Process(
            target=write_speech, args=((spoken(i) for i in range(100_000)), killed, True), daemon=True
        )
        process.start()
        while _counted(killed) <= counted and process.is_alive():
            time.sleep(0.001)
        time.sleep(wait_s)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        speech = speech_on_disk(killed)
        assert speech.sentences > counted, "what was there before the kill is still there"
        counted = speech.sentences
        on_wav = soundfile.info(speech.audio).frames / 12_000
        assert counted <= on_wav <= counted + 1, "what is not counted is at most the sentence in hand"
    wanted = counted + 3
    write_speech((spoken(i) for i in range(wanted)), killed, resume=True)
    write_speech((spoken(i) for i in range(wanted)), tmp_path / "whole")
    assert contents(killed) == contents(tmp_path / "whole")


def _counted(folder: Path) -> int:
    path = folder / "speech.json"
    return json.loads(path.read_text())["sentences"] if path.exists() else 0


def test_long_speech_is_written_in_flat_memory_and_plays_to_the_last_second(tmp_path: Path) -> None:
    sentences, seconds = 120, 10.0
    resident: list[int] = []

    def hours() -> Iterator[SpokenSentence]:
        for index in range(sentences):
            resident.append(int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize())
            yield spoken(index, seconds)

    speech = write_speech(hours(), tmp_path)
    assert speech.duration_s == 1200
    assert max(resident[20:]) - resident[20] < 8e6, "48 MB go to disk meanwhile"
    last = None
    for index, block in enumerate(stream_audio(speech.audio, seconds=seconds, sample_rate_hz=SAMPLE_RATE_HZ)):
        assert np.all(block == (index % 100 + 1) / 128)
        last = index
    assert last == sentences - 1
    assert webvtt.read(speech.subtitles)[-1].end == "00:20:00.000"


def test_a_full_disk_is_a_clear_error_and_loses_nothing(tmp_path: Path) -> None:
    whole = write_speech((spoken(i) for i in range(3)), tmp_path / "whole")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with SpeechWriter(tmp_path / "full") as writer:
        writer.append(spoken(0))
        # No file may grow past this: writes fail in the middle of the second sentence, as on a full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, limits[1]))
        try:
            with pytest.raises(
                OSError, match=r"while writing sentence 2 .*the 1 sentences before it .*are whole"
            ) as caught:
                writer.append(spoken(1))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert caught.value.errno == errno.EFBIG
        assert len(soundfile.read(tmp_path / "full" / "speech.wav")[0]) == 12_000
        assert speech_on_disk(tmp_path / "full").sentences == 1
        for index in (1, 2):  # once there is room
            writer.append(spoken(index))
        writer.finish()
    assert contents(tmp_path / "full") == contents(whole.folder)


def test_what_would_spoil_a_speech_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing was spoken"):
        write_speech(iter([]), tmp_path / "nothing")
    write_speech([spoken(0), spoken(1)], tmp_path / "a")
    before = contents(tmp_path / "a")
    with pytest.raises(ValueError, match=r"holds speech already; resume it"):
        write_speech([spoken(0)], tmp_path / "a")
    with pytest.raises(ValueError, match=r"the text is not the one .* its first 2 sentences differ"):
        write_speech([spoken(0), spoken(7), spoken(2)], tmp_path / "a", resume=True)
    with pytest.raises(ValueError, match=r"ends after 1 sentences, .* holds 2"):
        write_speech([spoken(0)], tmp_path / "a", resume=True)
    with pytest.raises(ValueError, match=r"was spoken by '', not 'espeak en-us"):
        speak_to_disk(load_engine(), "Hello.", tmp_path / "a", resume=True)
    with SpeechWriter(tmp_path / "a", resume=True) as writer:
        with pytest.raises(ValueError, match="another process is writing"):
            SpeechWriter(tmp_path / "a", resume=True)
        with pytest.raises(ValueError, match="pass each of them to `skips`"):
            writer.append(spoken(2))
    assert contents(tmp_path / "a") == before, "and what was there is untouched"
    with pytest.raises(ValueError, match="there is no speech"):
        speech_on_disk(tmp_path)
    (tmp_path / "a" / "speech.wav").write_bytes(before[0][:1000])
    with pytest.raises(ValueError, match=r"speech.wav has 1000 bytes, speech.json counts 48044"):
        write_speech([spoken(0), spoken(1)], tmp_path / "a", resume=True)
    (tmp_path / "a" / "speech.json").write_text("{")
    with pytest.raises(ValueError, match=r"speech.json cannot be read"):
        speech_on_disk(tmp_path / "a")


def test_a_wav_cannot_pass_24_hours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backbones.tts.on_disk._LONGEST_SAMPLES", 20_000)
    with SpeechWriter(tmp_path) as writer:
        writer.append(spoken(0))
        with pytest.raises(ValueError, match=r"a wav ends at 24\.8 hours"):
            writer.append(spoken(1))
