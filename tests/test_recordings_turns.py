"""From sound and transcript to turns: pauses, roles, boundaries, and words that cannot be this recording's."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from recording_sources import RATE, SETTINGS, monologue, silence, spoken, two_people

from backbones.speech.channels import SoundFormat
from experiments.recordings.listening import MIXED, ListenedFile, listen
from experiments.recordings.settings import PreparationSettings
from experiments.recordings.sound_cutting import cut_out
from experiments.recordings.source_files import Cue, SoundFile, Transcript
from experiments.recordings.stretches import Stretch, stretches_of
from experiments.recordings.transcripts import read_librispeech, read_transcript
from experiments.recordings.turns import LISTENING_S, conversations_of
from experiments.recordings.voice import FLAG_S, VoiceDetector, divided, speech_spans

VoicesOfTwo = dict[str, list[np.ndarray]]


@pytest.fixture(scope="module")
def voices(tmp_path_factory: pytest.TempPathFactory) -> VoicesOfTwo:
    return spoken(tmp_path_factory.mktemp("voices"))


def flags_of(samples: np.ndarray, pieces: int = 1) -> np.ndarray:
    detector = VoiceDetector(2)
    for piece in np.array_split(samples, pieces):
        detector.push(piece)
    return detector.finish()


@pytest.mark.parametrize("gain", [1.0, 0.01])
def test_stretches_are_the_sentences_at_any_level(voices: VoicesOfTwo, gain: float) -> None:
    samples = monologue(voices["m"]) * gain
    spans = speech_spans(flags_of(samples), len(samples) / RATE, SETTINGS)
    expected, at = [], 0.0
    for sentence in voices["m"]:
        expected.append((at + 0.9, at + 0.9 + len(sentence) / RATE))
        at = expected[-1][1]
    assert len(spans) == 3
    np.testing.assert_allclose(spans, expected, atol=0.3)


def test_flags_do_not_depend_on_how_the_sound_is_split(voices: VoicesOfTwo) -> None:
    samples = monologue(voices["f"], rounds=3)
    np.testing.assert_array_equal(flags_of(samples), flags_of(samples, pieces=17))


def test_silence_and_steady_noise_are_no_speech() -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 25 * RATE).astype(np.float32)
    assert not flags_of(noise).any()
    assert not flags_of(silence(25)).any()


def test_a_long_stretch_is_divided_at_its_longest_pause() -> None:
    flags = np.ones(1000, dtype=bool)  # 30 s
    flags[300:305] = False
    flags[600:612] = False
    pieces, forced = divided((0.0, 30.0), flags, 20.0)
    assert forced == 0
    assert pieces == [(0.0, pytest.approx(606 * FLAG_S)), (pytest.approx(606 * FLAG_S), 30.0)]


def test_a_cut_into_speech_is_counted() -> None:
    pieces, forced = divided((0.0, 30.0), np.ones(1000, dtype=bool), 8.0)
    assert forced == len(pieces) - 1 == 3
    assert all(end - first <= 8 for first, end in pieces)


def test_a_listed_stretch_is_cut_out_sample_by_sample() -> None:
    sound = np.random.default_rng(0).normal(size=(5 * RATE, 2)).astype(np.float32)
    blocks = np.array_split(sound, 37)
    asked = [
        Stretch(file=0, channel=1, start_s=2.0, end_s=3.5, speaker=""),
        Stretch(file=0, channel=MIXED, start_s=0.5, end_s=2.25, speaker=""),
        Stretch(file=0, channel=0, start_s=4.5, end_s=9.0, speaker=""),
    ]
    cut = dict(cut_out(blocks, asked))
    np.testing.assert_array_equal(cut[0], sound[2 * RATE : round(3.5 * RATE), 1])
    np.testing.assert_array_equal(cut[1], sound[RATE // 2 : round(2.25 * RATE)].mean(axis=1))
    np.testing.assert_array_equal(cut[2], sound[round(4.5 * RATE) :, 0])


def heard_file(flags: dict[int, np.ndarray], duration_s: float, are: str = "one") -> ListenedFile:
    kind = SoundFormat(codec="WAV/PCM_16", sample_rate_hz=RATE, channels=len(flags))
    return ListenedFile(format=kind, duration_s=duration_s, flags=flags, channels_are=are)  # type: ignore[arg-type]


def sound_file(transcript: Transcript | None = None, **fields: bool) -> SoundFile:
    return SoundFile(path=Path("talk.wav"), size_bytes=1, modified_ns=1, transcript=transcript, **fields)


def speaking(*spans: tuple[float, float], duration_s: float) -> np.ndarray:
    flags = np.zeros(round(duration_s / FLAG_S), dtype=bool)
    for first, end in spans:
        flags[round(first / FLAG_S) : round(end / FLAG_S)] = True
    return flags


def test_one_persons_turns_are_heard_and_learned_by_turns_and_the_last_is_learned() -> None:
    stretches = [
        (at, Stretch(file=0, channel=MIXED, start_s=at, end_s=at + 3, speaker="")) for at in (0.0, 4.0, 8.0, 60.0)
    ]
    first, second = conversations_of(stretches, replace(SETTINGS, conversation_pause_s=20.0))
    assert [(turn.role, turn.sound is None) for turn in first] == [
        ("user", True), ("assistant", False), ("user", False), ("assistant", False)
    ]  # fmt: skip
    assert [(turn.role, turn.at_s) for turn in second] == [("user", 60.0 - LISTENING_S), ("assistant", 60.0)]


def test_two_people_alternate_and_whoever_is_silent_listens() -> None:
    told = [("a", 0.0, 9.0), ("a", 9.5, 14.0), ("b", 15.0, 16.0), ("a", 17.0, 18.0)]
    stretches = [
        (first, Stretch(file=0, channel=MIXED, start_s=first, end_s=end, speaker=speaker, text=f"{first:g}"))
        for speaker, first, end in told
    ]
    (turns,) = conversations_of(stretches, SETTINGS)
    # `a` speaks the longest, so is the assistant; 14 s of speech are more than the longest turn.
    assert [(turn.role, turn.sound.text if turn.sound else None) for turn in turns] == [
        ("user", None), ("assistant", "0"), ("user", None), ("assistant", "9.5"), ("user", "15"), ("assistant", "17")
    ]  # fmt: skip


def test_neighbouring_cues_of_one_speaker_become_one_turn_with_the_pause_between() -> None:
    cues = (Cue(start_s=1, end_s=2, text="good"), Cue(start_s=2.5, end_s=4, text="morning"))
    flags = {MIXED: speaking((1, 4), duration_s=6)}
    found = stretches_of(0, sound_file(Transcript(source="t.vtt", cues=cues)), heard_file(flags, 6.0), SETTINGS)
    (turns,) = conversations_of([(one.start_s, one) for one in found.stretches], SETTINGS)
    assert turns[1].sound is not None
    assert (turns[1].sound.text, turns[1].sound.start_s, turns[1].sound.end_s) == ("good morning", 1, 4)


@pytest.mark.parametrize(
    ("cues", "told"),
    [
        ([(0, 5, "a"), (500, 505, "b")], "its words go on until 505.0 s"),
        ([(30, 58, "words where nobody speaks")], "nobody speaks"),
        ([(0, 11, "a few words only")], "for 20 % of the speech|for 1[0-9] % of the speech"),
    ],
)
def test_a_transcript_of_another_recording_is_refused_and_the_sound_kept(cues: list, told: str) -> None:
    spans = ((0, 28),) if told == "nobody speaks" else ((0, 59),)
    transcript = Transcript(source="t.vtt", cues=tuple(Cue(start_s=a, end_s=b, text=text) for a, b, text in cues))
    flags = {MIXED: speaking(*spans, duration_s=60)}
    found = stretches_of(0, sound_file(transcript), heard_file(flags, 60.0), SETTINGS)
    assert len(found.drops) == 1 and found.drops[0].what == "transcript"
    assert pytest.approx(found.stretches[0].start_s) == 0 and not any(one.text for one in found.stretches)
    assert re.search(told, found.drops[0].reason), found.drops[0].reason


def test_words_without_times_fit_a_short_recording_only_and_are_spread_only_when_asked() -> None:
    text = Transcript(source="t.txt", text="One sentence is here. Another one follows it. And the last comes now.")
    short = stretches_of(0, sound_file(text), heard_file({MIXED: speaking((1, 6), duration_s=8)}, 8.0), SETTINGS)
    assert [one.text for one in short.stretches] == [text.text]
    flags = {MIXED: speaking((1, 6), (20, 25), (40, 45), duration_s=60)}
    aside = stretches_of(0, sound_file(text), heard_file(flags, 60.0), SETTINGS)
    assert [one.text for one in aside.stretches] == ["", "", ""] and "no times" in aside.drops[0].reason
    spread = stretches_of(0, sound_file(text), heard_file(flags, 60.0), replace(SETTINGS, spreads_untimed_text=True))
    assert [one.text for one in spread.stretches] == [
        "One sentence is here.", "Another one follows it.", "And the last comes now."
    ]  # fmt: skip


def test_a_text_of_the_wrong_pace_is_refused() -> None:
    book = Transcript(source="t.txt", text="word " * 500)
    flags = {MIXED: speaking((1, 6), duration_s=8)}
    found = stretches_of(0, sound_file(book), heard_file(flags, 8.0), SETTINGS)
    assert "a second" in found.drops[0].reason and found.stretches[0].text == ""


def test_cues_of_two_channels_belong_to_the_channel_that_speaks() -> None:
    flags = {0: speaking((1, 3), duration_s=10), 1: speaking((4, 8), duration_s=10)}
    cues = (Cue(start_s=1, end_s=3, text="hello"), Cue(start_s=4, end_s=8, text="good day"))
    transcript = Transcript(source="t.vtt", cues=cues)
    found = stretches_of(0, sound_file(transcript), heard_file(flags, 10.0, "speakers"), SETTINGS)
    assert [(one.channel, one.text) for one in found.stretches] == [(0, "hello"), (1, "good day")]


def test_subtitles_keep_milliseconds_speakers_and_no_markup(tmp_path: Path) -> None:
    (tmp_path / "a.vtt").write_text(
        "WEBVTT\n\n00:00:01.250 --> 00:00:02.750\n<v Ann>Hello &amp; <i>welcome</i>\n\n"
        "01:00:03.000 --> 01:00:04.500\nBOB: so late\n"
    )
    (tmp_path / "a.srt").write_bytes("\ufeff1\r\n00:00:01,250 --> 00:00:02,750\r\nHello\r\n\r\n".encode())
    assert read_transcript(tmp_path / "a.vtt").cues == (
        Cue(start_s=1.25, end_s=2.75, text="Hello & welcome", speaker="Ann"),
        Cue(start_s=3603.0, end_s=3604.5, text="so late", speaker="BOB"),
    )
    assert read_transcript(tmp_path / "a.srt").cues == (Cue(start_s=1.25, end_s=2.75, text="Hello"),)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.vtt", b"no header", "no readable vtt"),
        ("a.vtt", b"WEBVTT\n\n", "no words"),
        ("a.srt", b"hello", "no words|no readable"),
        ("a.txt", b"\xff\xfe\x00x", "not UTF-8"),
        ("a.txt", b" \n", "no words"),
        ("a.trans.txt", b"1-2-3\n", r"trans\.txt:1 has no words"),
    ],
)
def test_a_transcript_that_cannot_be_read_says_why(name: str, content: bytes, told: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=told):
        (read_librispeech if name.endswith(".trans.txt") else read_transcript)(tmp_path / name)


def test_channels_of_a_conversation_are_told_from_a_stereo_mix(tmp_path: Path, voices: VoicesOfTwo) -> None:

    soundfile.write(tmp_path / "call.wav", two_people(voices), RATE)
    mix = monologue(voices["m"])
    soundfile.write(tmp_path / "stereo.wav", np.stack([mix, mix * 0.7], axis=1), RATE)
    assert listen(tmp_path / "call.wav", SETTINGS, lambda _: None).channels_are == "speakers"
    assert listen(tmp_path / "stereo.wav", SETTINGS, lambda _: None).channels_are == "mixed"
    told = replace(SETTINGS, channels="mix")
    assert listen(tmp_path / "call.wav", told, lambda _: None).channels_are == "mixed"


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"channels": "both"}, "channels is 'both'"),
        ({"pause_s": 0.0}, "pause_s is 0.0"),
        ({"n_mels": 64}, "n_mels is 64"),
        ({"monologue_turn_s": 40.0}, "above longest_turn_s"),
        ({"voice_strictness": 1.5}, "whole number"),
    ],
)
def test_settings_that_make_no_sense_are_refused(fields: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        PreparationSettings(**fields)
