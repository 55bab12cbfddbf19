"""Sets of conversations on disk: made once, found again, never half there, and honest about damage."""

from __future__ import annotations

import gzip
import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import whisper.audio
from conversation_fixtures import SPEC

from backbones.speech import UnitCodebook
from backbones.speech.espeak import EspeakError, SpeechJob, speak_to_files
from experiments.data import synthetic
from experiments.data.dataset import ConversationSet
from experiments.data.folders import CorruptCacheError, whole_folder
from experiments.data.spec import ConversationSpec
from experiments.data.synthetic import build_conversations


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    build_conversations(SPEC, folder, progress=False, processes=1)
    return folder


@pytest.fixture
def dataset(cache: Path) -> ConversationSet:
    return build_conversations(SPEC, cache, progress=False)


@pytest.fixture
def own_cache(cache: Path, tmp_path: Path) -> Path:
    """A copy of the cache that a test may damage."""
    return Path(shutil.copytree(cache, tmp_path / "own"))


def _no_speech(_jobs: list[SpeechJob], _processes: int) -> Iterator[int]:
    raise AssertionError("something was spoken again")


def _contents(folder: Path) -> dict[str, bytes]:
    """Bytes of every file; what they say where headers hold the time (gzip) or come in any order (safetensors)."""
    contents: dict[str, bytes] = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".gz":
            contents[name] = gzip.decompress(path.read_bytes())
        elif path.suffix == ".safetensors":
            contents[name] = UnitCodebook.load(path).fingerprint.encode()
        elif path.is_file() and path.name != "checksums.json":
            contents[name] = path.read_bytes()
    return contents


def test_the_same_spec_gives_the_same_bytes_on_other_processes_and_threads(cache: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        build_conversations(SPEC, tmp_path, progress=False, processes=2)
    finally:
        torch.set_num_threads(before)
    assert _contents(tmp_path) == _contents(cache)


def test_another_seed_draws_other_conversations_over_the_same_pool(
    dataset: ConversationSet, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synthetic, "speak_to_files", _no_speech)
    other = build_conversations(ConversationSpec(**{**vars(SPEC), "seed": 4}), own_cache, progress=False)
    assert other.folder != dataset.folder and other.pool.folder.name == dataset.pool.folder.name
    assert all(a.turns != b.turns for a, b in zip(other, dataset, strict=True))


def test_a_cached_set_is_opened_without_being_made_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "speak_to_files", _no_speech)
    before = {p: p.stat().st_mtime_ns for p in cache.rglob("*")}
    assert len(build_conversations(SPEC, cache, progress=False)) == 7
    assert {p: p.stat().st_mtime_ns for p in cache.rglob("*")} == before


def test_splits_are_disjoint_and_complete(dataset: ConversationSet) -> None:
    train, validation = dataset.split_indices("train"), dataset.split_indices("validation")
    assert (len(train), len(validation)) == (5, 2) and sorted(train + validation) == list(range(len(dataset)))
    assert all(dataset[i].split == "validation" for i in validation)
    said = {tuple(t.utterance_id for t in c.turns) for c in dataset}
    assert len(said) == len(dataset)


def test_log_mels_are_whispers_own_of_the_wav_that_is_there(dataset: ConversationSet) -> None:
    for identifier in list(dataset.pool)[::9]:
        samples, rate_hz = soundfile.read(dataset.pool.samples_path(identifier), dtype="float32")
        assert rate_hz == 16_000 and samples.ndim == 1
        expected = whisper.audio.log_mel_spectrogram(samples, n_mels=SPEC.n_mels).T
        given = dataset.utterance(identifier).mel
        assert given.dtype == torch.float32 and len(given) == len(samples) // 160 == dataset.pool.mel_frames(identifier)
        torch.testing.assert_close(given, expected, atol=1e-3, rtol=0)


def test_units_are_the_codebooks_and_cover_the_utterance(dataset: ConversationSet) -> None:
    seen: set[int] = set()
    for identifier in dataset.pool:
        utterance = dataset.utterance(identifier)
        assert int(utterance.durations.sum()) == -(-len(utterance.mel) // 2)
        assert bool((utterance.units[1:] != utterance.units[:-1]).all())
        assert torch.equal(
            utterance.units.repeat_interleave(utterance.durations), dataset.codebook.encode(utterance.mel)
        )
        seen |= set(utterance.units.tolist())
    assert seen <= set(range(SPEC.unit_vocab_size)) and len(seen) > SPEC.unit_vocab_size // 2


def test_user_and_assistant_speak_with_their_own_voices(dataset: ConversationSet) -> None:
    assert {dataset.utterance(i).voice for i in dataset.pool if dataset.pool.speaker(i) == "user"} == {"en-us+m3"}
    assert {dataset.utterance(i).voice for i in dataset.pool if dataset.pool.speaker(i) == "assistant"} == {"en-us+f3"}


def test_lhotse_opens_the_manifest_and_its_sound(dataset: ConversationSet) -> None:
    recordings, supervisions = dataset.pool.manifest()
    assert len(recordings) == len(supervisions) == len(dataset.pool)
    for supervision in list(supervisions)[::17]:
        sound = recordings[supervision.recording_id].load_audio()
        expected, _ = soundfile.read(dataset.pool.samples_path(supervision.id), dtype="float32")
        np.testing.assert_array_equal(sound[0], expected)
        assert supervision.text == dataset.pool.text(supervision.id)
        assert supervision.duration == len(expected) / 16_000


def test_a_rendered_conversation_has_each_turn_at_its_time_on_its_channel(dataset: ConversationSet) -> None:
    samples, rate_hz = dataset.render(1)
    conversation = dataset[1]
    assert samples.shape[1] == 2 and abs(len(samples) / rate_hz - conversation.duration_s) < 0.01
    spoken = np.zeros(samples.shape, dtype=bool)
    for turn, supervision in zip(conversation.turns, dataset.supervisions(1), strict=True):
        own = ("user", "assistant").index(turn.speaker)
        expected, _ = soundfile.read(dataset.pool.samples_path(turn.utterance_id), dtype="float32")
        first = round(turn.start_s * rate_hz)
        np.testing.assert_array_equal(samples[first : first + len(expected), own], expected)
        spoken[first : first + len(expected), own] = True
        assert (supervision.start, supervision.channel, supervision.text) == (turn.start_s, own, turn.text)
        assert abs(supervision.end - turn.end_s) < 1e-4
    assert not samples[~spoken].any()


def test_a_pickled_set_is_small_and_gives_the_same_conversations(dataset: ConversationSet) -> None:
    dataset.pool.mel(next(iter(dataset.pool)))
    pickled = pickle.dumps(dataset)
    assert len(pickled) < 10_000
    assert list(pickle.loads(pickled)) == list(dataset)


@pytest.mark.parametrize("interruption", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interrupted_build_leaves_nothing_behind(
    interruption: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def speak_two(jobs: list[SpeechJob], processes: int) -> Iterator[int]:
        yield from speak_to_files(jobs[:2], processes)
        raise interruption

    monkeypatch.setattr(synthetic, "speak_to_files", speak_two)
    with pytest.raises(type(interruption)):
        build_conversations(SPEC, tmp_path / "cache", progress=False)
    assert list((tmp_path / "cache").iterdir()) == []


def test_an_engine_that_fails_is_an_error_and_no_cache(tmp_path: Path) -> None:
    broken = ConversationSpec(**{**vars(SPEC), "user_voice": type(SPEC.user_voice)(variant="nobody")})
    with pytest.raises(EspeakError, match="no voice variant 'nobody'"):
        build_conversations(broken, tmp_path, progress=False)
    assert list(tmp_path.iterdir()) == []


def _used_by_some(dataset: ConversationSet) -> tuple[str, set[str]]:
    """An utterance that some conversations use and others do not, and the names of those that do."""
    users = {i: {c.name for c in dataset if any(t.utterance_id == i for t in c.turns)} for i in dataset.pool}
    return next((i, names) for i, names in users.items() if 0 < len(names) < len(dataset))


@pytest.mark.parametrize("damage", ["flipped", "cut short", "missing"])
def test_a_bad_wav_is_named_and_skipped_only_if_asked(
    damage: str, dataset: ConversationSet, own_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    identifier, users = _used_by_some(dataset)
    wav = own_cache / dataset.pool.samples_path(identifier).relative_to(dataset.pool.folder.parent)
    content = bytearray(wav.read_bytes())
    if damage == "flipped":
        content[-1001] ^= 0x40
        wav.write_bytes(content)
    elif damage == "cut short":
        wav.write_bytes(content[: len(content) // 2])
    else:
        wav.unlink()
    with pytest.raises(CorruptCacheError, match=rf"{wav.name} .*delete the folder .*skip_bad_audio=True"):
        build_conversations(SPEC, own_cache, progress=False)
    left = build_conversations(SPEC, own_cache, progress=False, skip_bad_audio=True)
    assert {lost.name for lost in left.dropped} == users and all(wav.name in lost.reason for lost in left.dropped)
    assert {c.name for c in left} == {c.name for c in dataset} - users
    assert all(name in caplog.text for name in users)
    for index in range(len(left)):
        left.render(index)


def test_bad_sound_that_every_conversation_uses_leaves_an_error_not_an_empty_set(
    dataset: ConversationSet, own_cache: Path
) -> None:
    for wav in own_cache.rglob("*.wav"):
        wav.unlink()
    with pytest.raises(CorruptCacheError, match="every conversation"):
        build_conversations(SPEC, own_cache, progress=False, skip_bad_audio=True)


def test_bad_sound_that_empties_one_split_is_an_error_not_a_set_without_it(
    dataset: ConversationSet, own_cache: Path
) -> None:
    spec = ConversationSpec(**{**vars(SPEC), "validation_conversations": 1})
    whole = build_conversations(spec, own_cache, progress=False)
    training = [{t.utterance_id for t in whole[i].turns} for i in whole.split_indices("train")]
    validation = {t.utterance_id for t in whole[whole.split_indices("validation")[0]].turns}
    whole.pool.samples_path(next(u for u in sorted(validation) if not all(u in used for used in training))).unlink()
    with pytest.raises(CorruptCacheError, match=r"every one of the 1 validation conversations .* delete the folder"):
        build_conversations(spec, own_cache, progress=False, skip_bad_audio=True)
    without = ConversationSpec(**{**vars(SPEC), "validation_conversations": 0})
    assert build_conversations(without, own_cache, progress=False, skip_bad_audio=True).split_indices("train")


def test_a_pool_spoken_by_another_version_of_the_engine_is_refused_and_opened_where_there_is_none(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_engine() -> str:
        raise EspeakError("espeak-ng is not installed")

    monkeypatch.setattr(synthetic, "engine_version", lambda: "9.9.9")
    with pytest.raises(
        ValueError, match=r"was spoken by espeak-ng \S+, installed is espeak-ng 9.9.9: delete the folder"
    ):
        build_conversations(SPEC, own_cache, progress=False)
    monkeypatch.setattr(synthetic, "engine_version", no_engine)
    assert len(build_conversations(SPEC, own_cache, progress=False)) == 7


@pytest.mark.parametrize("content", ["[]", "{}", "3", '{"mel.npy": 5}'])
@pytest.mark.parametrize("kind", ["pool", "conversations"])
def test_checksums_that_list_nothing_or_not_everything_are_an_error(kind: str, content: str, own_cache: Path) -> None:
    next(own_cache.glob(f"{kind}-*/checksums.json")).write_text(content)
    with pytest.raises(CorruptCacheError, match=r"checksums.json .* delete the folder"):
        build_conversations(SPEC, own_cache, progress=False, skip_bad_audio=True)


def test_a_cache_that_cannot_be_written_to_says_what_to_give(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for cache_dir in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match="give as cache_dir a folder that can be written to"):
            build_conversations(SPEC, cache_dir, progress=False)


def _filling_killed(target: Path) -> None:
    """Has a process of its own begin to fill `target` and die at it."""
    program = (
        "import os, sys; from pathlib import Path; from experiments.data.folders import whole_folder\n"
        "with whole_folder(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'half').write_text('')\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    root = Path(synthetic.__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", program, str(target)], cwd=root, check=False).returncode == -9


def test_what_a_killed_builder_left_is_swept_away_and_a_living_ones_folder_is_not(tmp_path: Path) -> None:
    target = tmp_path / "pool-1"
    _filling_killed(target)
    (left_behind,) = tmp_path.iterdir()
    assert (left_behind / "half").is_file() and not target.exists()
    elsewhere = tmp_path / ".filling-pool-1-another-machine-1-0123abcd"
    elsewhere.mkdir()
    with whole_folder(target) as first:
        assert not left_behind.exists() and elsewhere.exists()
        (first / "by").write_text("the first")
        with whole_folder(target) as second:
            assert first.exists()
            (second / "by").write_text("the second")
        assert (target / "by").read_text() == "the second"
    assert (target / "by").read_text() == "the second", "who comes last finds it made"
    assert sorted(tmp_path.iterdir()) == sorted([elsewhere, target])


@pytest.mark.parametrize("name", ["mel.npy", "units.npy", "tokenizer.json", "conversations.jsonl", "checksums.json"])
def test_damage_to_anything_but_sound_is_always_an_error(name: str, own_cache: Path) -> None:
    path = next(own_cache.rglob(name))
    path.write_bytes(path.read_bytes()[:-70])
    with pytest.raises(CorruptCacheError, match=rf"{name}.* delete the folder"):
        build_conversations(SPEC, own_cache, progress=False, skip_bad_audio=True)


def test_an_unknown_utterance_or_conversation_is_an_error(dataset: ConversationSet) -> None:
    with pytest.raises(ValueError, match="no utterance 'nothing'"):
        dataset.pool.mel("nothing")
    with pytest.raises(IndexError, match="conversation 7 of 7"):
        dataset[7]


def test_the_spec_is_written_beside_the_data(dataset: ConversationSet) -> None:
    written = json.loads((dataset.folder / "spec.json").read_text())
    assert written["spec"] == json.loads(json.dumps(SPEC.as_dict())) and written["pool"] == SPEC.pool_digest()
    assert json.loads((dataset.pool.folder / "spec.json").read_text())["engine"].startswith("espeak-ng ")
