"""Engines that speak: espeak-ng for real, lazily and reproducibly; and what is said where one cannot speak."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from backbones.speech import espeak
from backbones.speech.espeak import EspeakError, EspeakVoice, SpeakingProcess
from backbones.tts import SpokenSentence, TTSEngine, load_engine

TEXT = "The word for the red box is tiger. How long is the train? It is long."


@pytest.fixture(scope="module")
def engine() -> TTSEngine:
    return load_engine()


def test_espeak_says_sentence_by_sentence_at_24_khz(engine: TTSEngine) -> None:
    spoken = list(engine.speak(TEXT))
    assert [s.text for s in spoken] == ["The word for the red box is tiger.", "How long is the train?", "It is long."]
    for sentence in spoken:
        assert 0.02 < sentence.samples.std() < 0.5
        assert np.all(sentence.samples[-6000:] == 0), "a pause of 0.25 s"
    # The same words at 16 kHz, by the older way: the same length of sound.
    assert spoken[0].duration_s - 0.25 == pytest.approx(
        len(espeak.speak(spoken[0].text, EspeakVoice())) / 16_000, abs=0.02
    )


def test_the_first_sentence_is_said_before_the_rest_of_the_text_is_there(engine: TTSEngine) -> None:
    asked: list[str] = []

    def pieces() -> Iterator[str]:
        for piece in ["It rains. ", "It ", "stops. ", "The end."]:
            asked.append(piece)
            yield piece

    stream = engine.speak(pieces())
    assert next(stream).text == "It rains." and len(asked) == 2
    assert [s.text for s in stream] == ["It stops.", "The end."]


def test_a_sentence_sounds_the_same_whatever_was_said_before(engine: TTSEngine) -> None:
    first, *_, again = engine.speak(f"{TEXT} The word for the red box is tiger.")
    assert np.array_equal(first.samples, again.samples)


def test_emoji_and_other_scripts_are_refused_by_name_or_left_out_on_request(engine: TTSEngine) -> None:
    with pytest.raises(ValueError, match=r"cannot read '😀', '你', '好' in 'Hello 😀 你好.'.*unreadable='skip'"):
        list(engine.speak("Hello 😀 你好."))
    skipping = load_engine("espeak", unreadable="skip", pause_s=0.5)
    hello, pause = skipping.speak(["Hello 😀 你好.\n\n", "😀😀"])
    assert hello.text == "Hello 😀 你好."
    assert np.array_equal(hello.samples, skipping.say("Hello.").samples)
    assert len(pause.samples) == 12_000 and not pause.samples.any()


def test_a_line_without_a_word_is_a_pause(engine: TTSEngine) -> None:
    assert not engine.say("* * *").samples.any()


@pytest.mark.parametrize("nothing", ["", "  \n", ["", " "], []])
def test_an_empty_prompt_is_an_error(engine: TTSEngine, nothing: str | list[str]) -> None:
    with pytest.raises(ValueError, match="nothing to speak"):
        list(engine.speak(nothing))


def test_the_speaking_process_survives_a_failure_and_is_replaced_after_its_death(engine: TTSEngine) -> None:
    with SpeakingProcess(EspeakVoice(), 24_000) as process:
        with pytest.raises(EspeakError, match="said nothing"):
            process.speak("...")
        assert len(process.speak("Hello.")) > 4_000
    with pytest.raises(EspeakError, match="has ended"):
        process.speak("Hello.")
    before = engine.say("Hello.").samples
    engine._process.close()
    assert np.array_equal(engine.say("Hello.").samples, before)


def test_without_the_library_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "espeakng_loader.py").write_text("raise ModuleNotFoundError('no espeakng_loader')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ValueError, match="pip install espeakng-loader"):
        load_engine("espeak")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("festival", {}, "no engine 'festival'; there are espeak, pocket, f5"),
        ("espeak", {"speed": 2}, "no option 'speed'; it has language, variant, words_per_minute"),
        ("espeak", {"folder": "somewhere"}, "has no weights, so no folder"),
        ("espeak", {"variant": "nobody"}, "no voice variant 'nobody'"),
        ("espeak", {"unreadable": "guess"}, "it is 'refuse' or 'skip'"),
        ("espeak", {"pause_s": -1.0}, "0 to 60 seconds"),
        ("pocket", {}, "needs folder=..., with model.safetensors, tokenizer.json"),
        ("f5", {}, "needs folder=..., with model.safetensors, vocos/config.yaml"),
    ],
)
def test_what_cannot_be_loaded_is_said_with_what_there_is(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_engine(name, **options)


@pytest.mark.parametrize(("name", "package"), [("pocket", "pocket_tts"), ("f5", "f5_tts")])
def test_an_engine_that_is_not_installed_names_its_extra(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *rest: None if n == package else found(n, *rest))
    monkeypatch.delitem(sys.modules, package, raising=False)
    with pytest.raises(ValueError, match=rf"pip install 'ttt-speech\[{name}\]'"):
        load_engine(name, tmp_path)


@pytest.mark.parametrize(
    "samples", [np.zeros((1, 5), np.float32), np.zeros(5), np.array([np.nan], np.float32), np.array([1.5], np.float32)]
)
def test_sound_that_is_not_mono_float_in_range_is_refused(samples: np.ndarray) -> None:
    with pytest.raises(ValueError, match="samples of 'x' must be"):
        SpokenSentence(text="x", samples=samples)
