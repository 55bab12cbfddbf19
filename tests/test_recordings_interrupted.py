"""Preparing recordings when it is broken off, the disk fills, shards are lost; other sources; memory; the command."""

from __future__ import annotations

import contextlib
import csv
import errno
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from lhotse import AudioSource, CutSet, MonoCut, Recording, SupervisionSegment
from recording_sources import (
    RATE,
    SENTENCES,
    SETTINGS,
    Voices,
    monologue,
    silence,
    spoken,
    two_people,
)

from experiments.recordings import shards
from experiments.recordings.__main__ import main
from experiments.recordings.dataset import RecordedConversations
from experiments.recordings.preparation import prepare_recordings
from experiments.recordings.sources import find_recordings


@pytest.fixture(scope="module")
def voices(tmp_path_factory: pytest.TempPathFactory) -> Voices:
    return spoken(tmp_path_factory.mktemp("voices"))


def small_source(folder: Path, voices: Voices, files: int) -> Path:
    folder.mkdir(exist_ok=True)
    for number in range(files):
        soundfile.write(folder / f"{number}.wav", monologue(voices["mf"[number % 2]]), RATE)
    return folder


def test_processes_give_what_one_gives_and_a_set_grows(
    voices: Voices, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = small_source(tmp_path / "source", voices, 2)
    one = prepare_recordings(source, "one", tmp_path, SETTINGS, processes=1, progress=False)
    two = prepare_recordings(source, "two", tmp_path, SETTINGS, processes=2, progress=False)
    state = [json.loads((root / "set.json").read_text()) for root in (one, two)]
    assert state[0] == state[1]
    codebook = (one / "codebook.safetensors").read_bytes()
    monkeypatch.setattr("experiments.recordings.shard_job.JOB_RECORDINGS", 1)
    small_source(source, voices, 3)
    prepare_recordings(source, "one", tmp_path, SETTINGS, processes=1, progress=False)
    assert len(RecordedConversations(one)) == 3
    assert (one / "codebook.safetensors").read_bytes() == codebook


def test_killed_at_any_moment_it_goes_on_and_ends_the_same(voices: Voices, tmp_path: Path) -> None:
    """Killed in the middle of the shards, and, by the command that went on, in the middle of the units."""
    source = small_source(tmp_path / "source", voices, 3)
    whole = prepare_recordings(source, "whole", tmp_path, SETTINGS, processes=1, progress=False)
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "sys.path.insert(0, 'tests')\n"
        "from recording_sources import SETTINGS\n"
        "from experiments.recordings import preparation, shard_job, shards, units\n"
        "shard_job.JOB_RECORDINGS = 1 if sys.argv[3] == 'shards' else 64\n"
        "where = {'shards': (shard_job, 'PartWriter'), 'units': (units, 'write_units')}\n"
        "module, name = where[sys.argv[3]]\n"
        "real, calls = getattr(module, name), []\n"
        "def killed(*given):\n"
        "    calls.append(1)\n"
        "    if len(calls) == (3 if sys.argv[3] == 'shards' else 1):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return real(*given)\n"
        "setattr(module, name, killed)\n"
        "preparation.prepare_recordings(sys.argv[1], 'killed', sys.argv[2], SETTINGS, processes=1, progress=False)\n"
    )
    for moment in ("shards", "units"):
        ended = subprocess.run([sys.executable, "-c", program, str(source), str(tmp_path), moment], check=False)
        assert ended.returncode == -signal.SIGKILL
        killed = tmp_path / "recordings" / "killed"
        with pytest.raises(ValueError, match="did not come to its end"):
            RecordedConversations(killed)
    done = [path for path in (killed / "shards").iterdir() if not path.name.startswith(".")]
    assert all(shards.read_shard(path) is not None for path in done)
    prepare_recordings(source, "killed", tmp_path, SETTINGS, processes=1, progress=False)
    assert (killed / "set.json").read_text() == (whole / "set.json").read_text()
    assert not list((killed / "shards").glob(".filling-*"))


def test_a_shard_that_lost_a_part_is_made_again(voices: Voices, tmp_path: Path) -> None:
    source = small_source(tmp_path / "source", voices, 1)
    root = prepare_recordings(source, "a", tmp_path, SETTINGS, processes=1, progress=False)
    (part,) = root.glob("shards/*/part-000.safetensors")
    content = part.read_bytes()
    part.write_bytes(content[:100])
    with pytest.raises(ValueError, match="not whole: run the same `make data` again"):
        RecordedConversations(root)
    prepare_recordings(source, "a", tmp_path, SETTINGS, processes=1, progress=False)
    assert part.read_bytes() == content
    part.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match="has changed"):
        RecordedConversations(root, checks_content=True)


def test_a_full_disk_stops_it_with_one_line_and_loses_nothing(
    voices: Voices, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = small_source(tmp_path / "source", voices, 2)
    monkeypatch.setattr("experiments.recordings.shard_job.JOB_RECORDINGS", 1)
    real, calls = shards._write, []

    def full(*given: Any) -> int:
        calls.append(1)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*given)

    with monkeypatch.context() as patched:
        patched.setattr(shards, "_write", full)
        with pytest.raises(ValueError, match=r"No space left on device.*1 shards are done and stay"):
            prepare_recordings(source, "a", tmp_path, SETTINGS, processes=1, progress=False)
    root = prepare_recordings(source, "a", tmp_path, SETTINGS, processes=1, progress=False)
    assert len(RecordedConversations(root)) == 2
    card = json.loads((root / "card.json").read_text())
    assert card["drops"] == []


def test_a_write_that_the_system_refuses_is_told(voices: Voices, tmp_path: Path) -> None:
    """A real limit of the size of files, which the system refuses to write beyond as it does on a full disk."""
    source = small_source(tmp_path / "source", voices, 2)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(ValueError, match=r"cannot write to .*File too large"):
            prepare_recordings(source, "a", tmp_path, SETTINGS, processes=1, progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list((tmp_path / "recordings" / "a" / "shards").iterdir())


def test_empty_and_unusable_sources_are_refused(tmp_path: Path, voices: Voices) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no recording that can be read: no other file"):
        prepare_recordings(tmp_path / "empty", "a", tmp_path)
    with pytest.raises(ValueError, match="no source at"):
        prepare_recordings(tmp_path / "nowhere", "a", tmp_path)
    with pytest.raises(ValueError, match="no name for a set"):
        prepare_recordings(tmp_path / "empty", "../a", tmp_path)
    (tmp_path / "silent").mkdir()
    soundfile.write(tmp_path / "silent" / "a.wav", silence(3), RATE)
    with pytest.raises(ValueError, match=r"none of 1 recordings can be used: .*no speech found"):
        prepare_recordings(tmp_path / "silent", "a", tmp_path, processes=1, progress=False)
    source = small_source(tmp_path / "source", voices, 1)
    many = replace(SETTINGS, unit_vocab_size=5000)
    with pytest.raises(ValueError, match=r"cannot fit 5000 units.*--unit-vocab-size"):
        prepare_recordings(source, "b", tmp_path, many, processes=1, progress=False)
    # Nothing was finished under that name, so other settings may be tried.
    prepare_recordings(source, "b", tmp_path, SETTINGS, processes=1, progress=False)


def test_tables_name_files_words_and_conversations(voices: Voices, tmp_path: Path) -> None:
    rows = []
    for place, who in enumerate(("m", "f", "m")):
        soundfile.write(tmp_path / f"{place}.wav", voices[who][place], RATE)
        rows.append({"audio": f"{place}.wav", "text": SENTENCES[who][place], "speaker": who, "conversation": "chat"})
    rows.append({"audio": "missing.wav", "text": "x", "speaker": "m", "conversation": "chat"})
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = find_recordings(tmp_path / "rows.csv")
    for table in (found, find_recordings(tmp_path / "rows.jsonl")):
        (chat,) = table.recordings
        assert chat.name == "chat"
        assert [file.transcript.text for file in chat.files if file.transcript] == [row["text"] for row in rows[:3]]
    assert "missing.wav" in found.drops[0].path
    root = prepare_recordings(tmp_path / "rows.csv", "a", tmp_path, SETTINGS, processes=1, progress=False)
    turns = [turn for one in RecordedConversations(root) for turn in one.turns if turn.text]
    assert [turn.text for turn in turns] == [row["text"] for row in rows[:3]]
    (tmp_path / "bad.csv").write_text("audio,start\n0.wav,1\n")
    with pytest.raises(ValueError, match=r"bad\.csv:2 needs start and end"):
        find_recordings(tmp_path / "bad.csv")


def test_lhotses_cuts_are_a_source(voices: Voices, tmp_path: Path) -> None:
    sound = two_people(voices)
    soundfile.write(tmp_path / "call.wav", sound, RATE)
    recording = Recording(
        id="call", sources=[AudioSource(type="file", channels=[0, 1], source="call.wav")], sampling_rate=RATE,
        num_samples=len(sound), duration=len(sound) / RATE,
    )  # fmt: skip
    said = SupervisionSegment(id="s", recording_id="call", start=0.25, duration=1.0, channel=1, text="hello")
    cut = MonoCut(id="c", start=2.0, duration=3.0, channel=1, recording=recording, supervisions=[said])
    CutSet.from_cuts([cut]).to_file(tmp_path / "cuts.jsonl.gz")
    found = find_recordings(tmp_path / "cuts.jsonl.gz")
    (cue,) = found.recordings[0].files[0].transcript.cues  # type: ignore[union-attr]
    assert (cue.start_s, cue.end_s, cue.text, cue.channel) == (2.25, 3.25, "hello", 1)
    (tmp_path / "other.jsonl.gz").write_bytes(b"not gzip")
    with pytest.raises(ValueError, match="cannot be read as a lhotse manifest"):
        find_recordings(tmp_path / "other.jsonl.gz")


def test_memory_does_not_grow_with_the_length(voices: Voices, tmp_path: Path) -> None:
    """After a recording of 2 minutes one of 16 adds less than 30 MiB to the peak: its sound alone is 58 MiB."""
    unit = monologue(voices["m"], rounds=5)
    for minutes in (2, 16):
        (tmp_path / str(minutes)).mkdir()
        with soundfile.SoundFile(tmp_path / str(minutes) / "long.flac", "w", RATE, 1) as file:
            for _ in range(minutes * 60 * RATE // len(unit)):
                file.write(unit)
    program = (
        "import sys\n"
        "from experiments.recordings.__main__ import main\n"
        "for minutes in ('2', '16'):\n"
        "    given = [f'{sys.argv[1]}/{minutes}', minutes, '--data-dir', sys.argv[1], '--processes', '1']\n"
        "    assert main([*given, '--unit-fit-s', '30']) == 0\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, capture_output=True)
    cards = [json.loads((tmp_path / "recordings" / name / "card.json").read_text()) for name in ("2", "16")]
    peaks = [card["cost"]["peak_bytes_of_a_process"] for card in cards]
    assert peaks[1] - peaks[0] < 30 << 20, peaks


def test_the_command_tells_what_it_did(voices: Voices, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = small_source(tmp_path / "source", voices, 2)
    given = [str(source), "a", "--data-dir", str(tmp_path), "--processes", "1", "--unit-vocab-size", "20"]
    assert main(given) == 0
    shown = capsys.readouterr().out
    assert "2 conversations; 0 drops" in shown and "card.html" in shown
    assert "its words are not known" in shown
    assert main([str(tmp_path / "none"), "a"]) == 2
    assert "error: no source at" in capsys.readouterr().err


class KillsReaders(threading.Thread):
    """Kills whichever other process has a file open, as often as it is opened (kill -9, what out of memory does)."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self.path = str(path)
        self.killed = 0
        self.is_over = threading.Event()

    def run(self) -> None:
        while not self.is_over.wait(0.002):
            for process in self._readers():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
                    self.killed += 1

    def _readers(self) -> list[int]:
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            with contextlib.suppress(OSError):
                if any(os.readlink(link) == self.path for link in (entry / "fd").iterdir()):
                    found.append(int(entry.name))
        return found


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="finds readers in /proc; runs on Linux")
def test_a_recording_whose_reader_is_killed_is_named_and_tried_again_next_time(voices: Voices, tmp_path: Path) -> None:
    source = small_source(tmp_path / "source", voices, 2)
    fatal = source / "fatal.flac"
    soundfile.write(fatal, monologue(voices["m"], rounds=60), RATE)
    killer = KillsReaders(fatal.resolve())
    killer.start()
    try:
        root = prepare_recordings(source, "a", tmp_path, SETTINGS, processes=2, progress=False)
    finally:
        killer.is_over.set()
        killer.join()
    assert killer.killed >= 2  # once beside the others, once alone
    [drop] = json.loads((root / "card.json").read_text())["drops"]
    assert "fatal.flac" in drop["path"] and "the process that read it died" in drop["reason"]
    assert {one.name.partition("#")[0] for one in RecordedConversations(root)} == {"0.wav", "1.wav"}
    prepare_recordings(source, "a", tmp_path, SETTINGS, processes=1, progress=False)
    assert json.loads((root / "card.json").read_text())["drops"] == []
    assert "fatal.flac" in {one.name.partition("#")[0] for one in RecordedConversations(root)}


def test_a_set_like_another_has_its_units_and_vocabulary(voices: Voices, tmp_path: Path) -> None:
    first = prepare_recordings(
        small_source(tmp_path / "one", voices, 1), "one", tmp_path, SETTINGS, processes=1, progress=False
    )
    source = small_source(tmp_path / "two", voices, 2)
    alike = prepare_recordings(source, "two", tmp_path, SETTINGS, like=first, processes=1, progress=False)
    ours, theirs = RecordedConversations(alike), RecordedConversations(first)
    assert ours.codebook.fingerprint == theirs.codebook.fingerprint
    assert (alike / "tokenizer.json").read_bytes() == (first / "tokenizer.json").read_bytes()
    same, before = (
        next(turn for one in found if one.name == "0.wav#0" for turn in one.turns if turn.utterance_id in found.pool)
        for found in (ours, theirs)
    )
    units = ours.pool.frame_units(same.utterance_id)
    assert torch.equal(units, theirs.pool.frame_units(before.utterance_id))
    alone = prepare_recordings(source, "alone", tmp_path, SETTINGS, processes=1, progress=False)
    assert RecordedConversations(alone).codebook.fingerprint != ours.codebook.fingerprint
    with pytest.raises(ValueError, match="was prepared with other like"):
        prepare_recordings(source, "alone", tmp_path, SETTINGS, like=first, processes=1, progress=False)
    with pytest.raises(ValueError, match="units of 80 mel bands, n_mels is 128"):
        prepare_recordings(source, "c", tmp_path, replace(SETTINGS, n_mels=128), like=first, processes=1)
    with pytest.raises(ValueError, match="nowhere"):
        prepare_recordings(source, "d", tmp_path, SETTINGS, like=tmp_path / "nowhere", processes=1)
