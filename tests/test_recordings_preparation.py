"""Preparing folders of recordings: every format, every kind of damage, interruptions, full disks, other sources."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
from recording_sources import (
    RATE,
    SENTENCES,
    SETTINGS,
    Voices,
    monologue,
    spoken,
    two_people,
    write_broken,
    write_m4a,
)

from experiments.recordings import preparation
from experiments.recordings.card import card_page
from experiments.recordings.dataset import RecordedConversations
from experiments.recordings.preparation import prepare_recordings
from experiments.recordings.shard_job import turn_mel


@dataclass(frozen=True)
class Prepared:
    source: Path
    root: Path
    card: dict[str, Any]

    def drop(self, name: str) -> str:
        """The reason that the card gives for the one thing of that name."""
        (reason,) = [drop["reason"] for drop in self.card["drops"] if name in drop["path"]]
        return reason


@pytest.fixture(scope="module")
def voices(tmp_path_factory: pytest.TempPathFactory) -> Voices:
    return spoken(tmp_path_factory.mktemp("voices"))


def write_source(folder: Path, voices: Voices) -> None:
    """The same monologue in many formats, a conversation, a LibriSpeech chapter, subtitles, and broken files."""
    speech = monologue(voices["m"])
    inner = folder / "ünï code" / "a folder with spaces"
    inner.mkdir(parents=True)
    soundfile.write(inner / "talk №1.wav", speech, RATE)
    soundfile.write(folder / "talk.flac", soxr.resample(speech, RATE, 44100), 44100)
    soundfile.write(folder / "talk.mp3", np.stack([speech, speech], axis=1), RATE)
    soundfile.write(folder / "talk.ogg", soxr.resample(speech, RATE, 8000), 8000)
    write_m4a(folder / "talk.m4a", speech)
    soundfile.write(folder / "call.wav", two_people(voices, rounds=2), RATE)
    soundfile.write(folder / "told.wav", two_people(voices).mean(axis=1), RATE)
    (folder / "told.en.vtt").write_text(subtitles(voices))
    soundfile.write(folder / "wrong.flac", speech, RATE)
    (folder / "wrong.srt").write_text("1\n00:40:00,000 --> 00:40:04,000\nWords of another recording\n")
    chapter = folder / "19" / "198"
    chapter.mkdir(parents=True)
    lines = []
    for number, (sentence, text) in enumerate(zip(voices["f"], SENTENCES["f"], strict=True)):
        soundfile.write(chapter / f"19-198-{number:04d}.flac", sentence, RATE)
        lines.append(f"19-198-{number:04d} {text.upper()}\n")
    (chapter / "19-198.trans.txt").write_text("".join(lines))
    (folder / "notes.pdf").write_bytes(b"%PDF")
    (folder / ".DS_Store").write_bytes(b"x")
    write_broken(folder / "broken", speech)


def subtitles(voices: Voices) -> str:
    """Of `two_people`, with speakers."""
    lines, at_s = ["WEBVTT\n"], 0.0
    for place in range(3):
        for who, name in (("m", "Max"), ("f", "Fay")):
            end_s = at_s + len(voices[who][place]) / RATE
            lines.append(f"00:{at_s:06.3f} --> 00:{end_s:06.3f}\n<v {name}>{SENTENCES[who][place]}\n")
            lines[-1] = lines[-1].replace("00:", "00:00:")
            at_s = end_s + 0.6
    return "\n".join(lines)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, voices: Voices) -> Prepared:
    source = tmp_path_factory.mktemp("source")
    write_source(source, voices)
    root = prepare_recordings(source, "mine", tmp_path_factory.mktemp("cache"), SETTINGS, processes=1, progress=False)
    return Prepared(source=source, root=root, card=json.loads((root / "card.json").read_text()))


def test_every_format_gives_the_same_turns(prepared: Prepared) -> None:
    rows = {row["name"]: row for row in prepared.card["per_recording"]}
    talks = [rows[f"talk.{suffix}"] for suffix in ("flac", "mp3", "ogg", "m4a")]
    talks.append(rows["ünï code/a folder with spaces/talk №1.wav"])
    assert {row["turns"] for row in talks} == {3}
    assert max(row["seconds"] for row in talks) - min(row["seconds"] for row in talks) < 0.2
    assert {one["codec"].split("/")[-1] for one in prepared.card["formats"]} >= {"aac", "MPEG_LAYER_III", "VORBIS"}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("zero bytes.wav", "empty"),
        ("broken/cut.wav", "cut short: it announces"),
        ("says ten hours.wav", "announces 1152000000 bytes"),
        ("a picture.wav", "no sound|cannot be read"),
        ("text.mp3", "cannot be read|no sound|damaged"),
        ("cut.m4a", "cannot be read|cut short"),
        ("silence.flac", "no speech found in 20.0 s"),
        ("noise.flac", "no speech found in 20.0 s"),
        ("broken/loop", "loop"),
        ("leads nowhere.wav", "leads nowhere"),
        ("wrong.srt", "only until"),
    ],
)
def test_every_broken_file_is_named_with_its_reason(prepared: Prepared, name: str, reason: str) -> None:
    assert re.search(reason, prepared.drop(name)), prepared.drop(name)


def test_nothing_else_is_dropped_and_other_files_are_counted(prepared: Prepared) -> None:
    assert len(prepared.card["drops"]) == 11
    assert prepared.card["ignored"] == {".pdf": 1}
    used = {row["name"] for row in prepared.card["per_recording"] if row["turns"]}
    assert len(used) == prepared.card["recordings_used"] == 9


def test_two_channels_are_user_and_assistant(prepared: Prepared, voices: Voices) -> None:
    recorded = RecordedConversations(prepared.root)
    (call,) = [one for one in recorded if one.name.startswith("call.wav")]
    assert len(call.turns) == 12
    for place, turn in enumerate(call.turns):
        sentence = voices["m" if turn.speaker == "user" else "f"][place // 2 % 3]
        assert turn.end_s - turn.start_s == pytest.approx(len(sentence) / RATE, abs=0.45)


def test_words_stand_with_the_speaker_who_says_them(prepared: Prepared) -> None:
    recorded = RecordedConversations(prepared.root)
    (told,) = [one for one in recorded if one.name.startswith("told.wav")]
    by_role = {role: [t.text for t in told.turns if t.speaker == role and t.text] for role in ("user", "assistant")}
    assert sorted(by_role.values()) == sorted(list(texts) for texts in SENTENCES.values())
    (chapter,) = [one for one in recorded if one.name.startswith("19/198/19-198")]
    assert [turn.text for turn in chapter.turns if turn.text] == [text.upper() for text in SENTENCES["f"]]


def test_features_are_those_of_the_sound_at_the_turns_time(prepared: Prepared) -> None:
    recorded = RecordedConversations(prepared.root, checks_content=True)
    shown = 0
    for shard in recorded.state.shards:
        described = json.loads((prepared.root / "shards" / shard / "shard.json").read_text())
        for recording in described["recordings"]:
            if recording["name"] != "call.wav":
                continue
            samples, _ = soundfile.read(prepared.source / "call.wav", dtype="float32")
            for row in (turn for conversation in recording["conversations"] for turn in conversation if "id" in turn):
                first, end = round(row["from_s"] * RATE), round(row["to_s"] * RATE)
                expected = turn_mel(np.ascontiguousarray(samples[first:end, row["channel"]]), SETTINGS.n_mels)
                mel = recorded.pool.mel(row["id"])
                # Times are kept to a millisecond, so a frame may begin some samples aside.
                assert abs(len(mel) - len(expected)) <= 1
                shared = min(len(mel), len(expected))
                assert float(np.abs(mel.numpy()[:shared] - expected[:shared].astype(np.float32)).mean()) < 0.02
                assert recorded.pool.frame_units(row["id"]).tolist() == recorded.codebook.encode(mel).tolist()
                shown += 1
    assert shown == 12


def test_lhotse_reads_the_manifests(prepared: Prepared) -> None:
    recordings, supervisions = RecordedConversations(prepared.root).pool.manifest()
    # Nine that are used, of which a chapter has three files, and two without speech.
    assert len(list(recordings)) == 13 and all(Path(one.sources[0].source).is_file() for one in recordings)
    assert sum(1 for one in supervisions) == prepared.card["turns"]["heard"] + prepared.card["turns"]["learned"]


def test_the_card_is_one_page_that_names_every_drop(prepared: Prepared) -> None:
    page = (prepared.root / "card.html").read_text()
    assert "http" not in page and "<script" not in page
    assert page.count("<tr><td>file</td>") == 10
    hostile = json.loads(json.dumps(prepared.card))
    hostile["per_recording"][0]["name"] = "<script>alert(1)</script>"
    assert "<script" not in card_page(hostile)


def test_a_second_run_does_nothing_again_and_a_new_file_is_added(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data_dir = prepared.root.parents[1]
    before = (prepared.root / "set.json").read_text()
    with monkeypatch.context() as patched:
        patched.setattr(preparation, "make_shard", lambda *_: pytest.fail("a shard was made again"))
        prepare_recordings(prepared.source, "mine", data_dir, SETTINGS, processes=1, progress=False)
    assert (prepared.root / "set.json").read_text() == before
    with pytest.raises(ValueError, match=r"pause_s \(0\.5, now 0\.7\)"):
        prepare_recordings(prepared.source, "mine", data_dir, replace(SETTINGS, pause_s=0.7), processes=1)
    with pytest.raises(ValueError, match="other source"):
        prepare_recordings(tmp_path_with_speech(tmp_path), "mine", data_dir, SETTINGS, processes=1)


def tmp_path_with_speech(folder: Path) -> Path:
    soundfile.write(folder / "a.wav", np.random.default_rng(0).normal(0, 0.1, RATE).astype(np.float32), RATE)
    return folder
