"""espeak-ng: it speaks, its voices differ, and a sentence sounds the same whatever was said before it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from backbones.speech import espeak, espeak_worker
from backbones.speech.espeak import EspeakError, EspeakVoice, SpeechJob, speak, speak_to_files

MAN, WOMAN = EspeakVoice(variant="m3"), EspeakVoice(variant="f3")
SENTENCE = "The word for the red box is tiger."


def _median_pitch_hz(samples: np.ndarray) -> float:
    """By autocorrelation of the loud 50 ms frames, 60 to 400 Hz."""
    frames = samples[: len(samples) // 800 * 800].reshape(-1, 800)
    pitches = []
    for frame in frames[frames.std(axis=1) > 0.3 * frames.std()]:
        similarity = np.correlate(frame, frame, mode="full")[799:]
        pitches.append(16_000 / (40 + np.argmax(similarity[40:267])))
    return float(np.median(pitches))


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    return {"man": speak(SENTENCE, MAN), "woman": speak(SENTENCE, WOMAN)}


def test_a_sentence_of_eight_words_is_one_and_a_half_to_four_seconds_of_audible_sound(
    spoken: dict[str, np.ndarray],
) -> None:
    for samples in spoken.values():
        assert samples.dtype == np.float32 and samples.ndim == 1
        assert 1.3 < len(samples) / 16_000 < 4.0
        assert 0.02 < samples.std() < 0.5 and np.abs(samples).max() <= 1.0
        loud = np.flatnonzero(np.abs(samples) > 0.01)

        assert loud[0] <= 800 and len(samples) - loud[-1] <= 1600, "little of the engine's own silence is kept"


def test_two_voices_differ_in_pitch(spoken: dict[str, np.ndarray]) -> None:
    assert _median_pitch_hz(spoken["woman"]) > 1.3 * _median_pitch_hz(spoken["man"])


def test_faster_speech_is_shorter(spoken: dict[str, np.ndarray]) -> None:
    faster = speak(SENTENCE, EspeakVoice(variant="m3", words_per_minute=300))
    assert len(faster) < 0.8 * len(spoken["man"])


def test_a_sentence_is_the_same_bytes_whatever_was_said_before_and_by_however_many_processes(tmp_path: Path) -> None:
    texts = ["Right, go on.", SENTENCE, "How long is the train?", SENTENCE + " Again.", "No."]

    def speak_all(folder: Path, order: list[int], processes: int) -> list[bytes]:
        folder.mkdir()
        jobs = [SpeechJob(text=texts[i], voice=(MAN, WOMAN)[i % 2], path=folder / f"{i}.wav") for i in order]
        assert sorted(speak_to_files(jobs, processes)) == list(range(len(jobs)))
        return [(folder / f"{i}.wav").read_bytes() for i in range(len(texts))]

    first = speak_all(tmp_path / "a", [0, 1, 2, 3, 4], processes=1)
    assert speak_all(tmp_path / "b", [4, 2, 3, 0, 1], processes=1) == first
    assert speak_all(tmp_path / "c", [0, 1, 2, 3, 4], processes=3) == first


def test_a_data_path_beyond_the_engines_limit_still_speaks(tmp_path: Path) -> None:
    _, data_path = espeak_worker.find_engine()
    long_path = tmp_path / ("long-folder-name" * 9) / "espeak-ng-data"
    long_path.parent.mkdir()
    long_path.symlink_to(data_path)
    assert len(str(long_path)) > 160
    program = (
        "import sys; from pathlib import Path; sys.path.append(sys.argv[2]); import espeak_worker as espeak\n"
        "library, _ = espeak.find_engine()\n"
        "with espeak.short_data_path(Path(sys.argv[1])) as path:\n"
        "    espeak.start_engine(library, path)\n"
        "    espeak.set_voice(library, path, espeak.EspeakVoice(variant='f3'))\n"
        "    print(len(espeak.speak_once(library, 'hello there')))\n"
    )
    # In a process of its own: the engine's state would stay in this one.
    done = subprocess.run(
        [sys.executable, "-c", program, str(long_path), str(Path(espeak_worker.__file__).parent)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(espeak.__file__).parents[2],
    )
    assert int(done.stdout) > 22_050 // 4


def test_a_missing_library_is_one_line_that_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(EspeakError, match="pip install espeakng-loader") as caught:
        espeak.engine_version()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "voice", "message"),
    [
        ("Hello.", EspeakVoice(variant="nobody"), "no voice variant 'nobody'"),
        ("Hello.", EspeakVoice(language="xx-nowhere"), "no voice 'xx-nowhere'"),
        ("...", MAN, "said nothing"),
    ],
)
def test_what_cannot_be_spoken_is_an_error_not_silence(text: str, voice: EspeakVoice, message: str) -> None:
    with pytest.raises(EspeakError, match=message):
        speak(text, voice)


def test_rates_and_pitches_that_the_engine_would_clip_are_refused() -> None:
    with pytest.raises(ValueError, match="80 to 450"):
        EspeakVoice(words_per_minute=20)
    with pytest.raises(ValueError, match="0 to 99"):
        EspeakVoice(pitch=100)
