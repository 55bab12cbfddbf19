"""K-means units: nearest by definition, kept to the bit, and back to sound that has the same units."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from scipy.signal import lfilter

from backbones.speech import UnitCodebook, collapse_repeats, expand_repeats, log_mel

FORMANTS_HZ = [(730, 1090, 2440), (270, 2290, 3010), (300, 870, 2240), (530, 1840, 2480), (570, 840, 2410)]


def vowels(seconds: float, seed: int) -> np.ndarray:
    """Voiced sound at 16 kHz: a gliding pitch through three resonances that change every 0.15 s, with pauses."""
    random = np.random.default_rng(seed)
    pieces = []
    for _ in range(round(seconds / 0.15)):
        steps = np.arange(2400)
        if random.random() < 0.15:
            pieces.append(1e-3 * random.standard_normal(2400))
            continue
        phase = np.cumsum(random.uniform(90, 220) * (1 + 0.1 * steps / 2400) / 16000)
        sound = np.diff(np.floor(phase), prepend=0.0) + 0.01 * random.standard_normal(2400)
        for formant_hz in FORMANTS_HZ[random.integers(5)]:
            radius = np.exp(-np.pi * 90 / 16000)
            sound = lfilter([1 - radius], [1, -2 * radius * np.cos(2 * np.pi * formant_hz / 16000), radius**2], sound)
        pieces.append(sound * np.hanning(2400))
    samples = np.concatenate(pieces)
    return (0.5 * samples / np.abs(samples).max()).astype(np.float32)


@pytest.fixture(scope="module")
def mels() -> list[torch.Tensor]:
    return [log_mel(vowels(6.0, seed)) for seed in range(6)]


@pytest.fixture(scope="module")
def codebook(mels: list[torch.Tensor]) -> UnitCodebook:
    return UnitCodebook.fit(mels, 48, seed=3)


def test_each_pair_of_frames_gets_the_nearest_centroid(codebook: UnitCodebook, mels: list[torch.Tensor]) -> None:
    mel = mels[0][:101]
    pairs = torch.cat([mel, mel[-1:]]).reshape(51, 256).double()
    distances = (pairs[:, None] - codebook.centroids.double()[None]).square().sum(dim=2)
    units = codebook.encode(mel)
    assert units.dtype == torch.int64
    assert units.tolist() == distances.argmin(dim=1).tolist()


def test_the_same_seed_gives_the_same_codebook_and_another_seed_another(
    codebook: UnitCodebook, mels: list[torch.Tensor]
) -> None:
    again = UnitCodebook.fit(mels, 48, seed=3)
    assert torch.equal(again.centroids, codebook.centroids) and again.fingerprint == codebook.fingerprint
    assert UnitCodebook.fit(mels, 48, seed=4).fingerprint != codebook.fingerprint


def test_a_centroid_is_the_mean_of_two_frames_one_after_the_other() -> None:
    mel = torch.randn(7, 80)
    one = UnitCodebook.fit([mel[:6]], 1)
    torch.testing.assert_close(one.to_mel([0]), torch.stack([mel[:6:2].mean(dim=0), mel[1:6:2].mean(dim=0)]))


def test_a_codebook_of_the_frames_themselves_loses_nothing() -> None:
    mel = torch.randn(10, 80)
    codebook = UnitCodebook.from_centroids(mel.reshape(5, 160).numpy(), n_mels=80)
    assert codebook.encode(mel).tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(codebook.to_mel(codebook.encode(mel)), mel)


def test_sound_made_of_units_has_those_units_again(codebook: UnitCodebook) -> None:
    heard_before = codebook.encode(log_mel(vowels(4.0, seed=99)))
    waveform = codebook.to_waveform(heard_before)
    assert waveform.dtype == np.float32 and len(waveform) == 320 * len(heard_before)
    heard_again = codebook.encode(log_mel(waveform))
    agreement = (heard_again == heard_before).float().mean().item()
    # Chance: drawing units independently from this utterance's own frequencies.
    chance = (torch.bincount(heard_before).double() / len(heard_before)).square().sum().item()
    assert agreement > max(0.6, 5 * chance)


def test_sound_made_of_units_has_the_level_of_what_they_were_made_from(codebook: UnitCodebook) -> None:
    samples = vowels(4.0, seed=98)
    for gain in (1.0, 0.25):
        units = UnitCodebook.fit([log_mel(gain * samples)], 100).encode(log_mel(gain * samples))
        waveform = UnitCodebook.fit([log_mel(gain * samples)], 100).to_waveform(units)
        assert np.sqrt(np.mean(waveform**2)) == pytest.approx(gain * np.sqrt(np.mean(samples**2)), rel=0.3)


def test_durations_are_repeats_and_the_same_seed_gives_the_same_sound(codebook: UnitCodebook) -> None:
    units = torch.tensor([5, 5, 5, 7, 2, 2])
    collapsed, durations = collapse_repeats(units)
    assert np.array_equal(codebook.to_waveform(collapsed, durations), codebook.to_waveform(units))
    assert np.array_equal(codebook.to_waveform(units, seed=1), codebook.to_waveform(units, seed=1))
    assert not np.array_equal(codebook.to_waveform(units, seed=1), codebook.to_waveform(units, seed=2))


def test_silence_and_a_tenth_of_a_second_have_units_and_a_quiet_sound(codebook: UnitCodebook) -> None:
    mel = log_mel(np.zeros(1600, dtype=np.float32))
    assert len(codebook.encode(mel)) == 5
    silent = UnitCodebook.fit([mel], 1)
    assert np.abs(silent.to_waveform(silent.encode(mel))).max() < 1e-3


@given(st.lists(st.integers(0, 4), max_size=50))
def test_expanding_collapsed_repeats_gives_the_units(units: list[int]) -> None:
    collapsed, durations = collapse_repeats(units)
    assert expand_repeats(collapsed, durations).tolist() == units
    assert bool((collapsed[1:] != collapsed[:-1]).all())
    assert int(durations.sum()) == len(units)


def test_a_saved_codebook_is_the_same_to_the_bit(codebook: UnitCodebook, tmp_path: Path) -> None:
    codebook.save(tmp_path / "units.safetensors")
    loaded = UnitCodebook.load(tmp_path / "units.safetensors")
    assert torch.equal(loaded.centroids, codebook.centroids) and loaded.n_mels == 128
    assert loaded.fingerprint == codebook.fingerprint


def test_a_codebook_file_that_cannot_be_trusted_is_refused(codebook: UnitCodebook, tmp_path: Path) -> None:
    path = tmp_path / "units.safetensors"
    with pytest.raises(ValueError, match="no unit codebook at"):
        UnitCodebook.load(path)
    path.write_bytes(b"not tensors")
    with pytest.raises(ValueError, match="not a readable safetensors"):
        UnitCodebook.load(path)
    save_file({"centroids": codebook.centroids}, path)
    with pytest.raises(ValueError, match="not a unit codebook"):
        UnitCodebook.load(path)
    metadata = {"version": "1", "config": '{"n_mels": 128}', "fingerprint": codebook.fingerprint}
    save_file({"centroids": codebook.centroids + 1e-6}, path, metadata=metadata)
    with pytest.raises(ValueError, match="fingerprint"):
        UnitCodebook.load(path)
    save_file(load_file(path), path, metadata=metadata | {"version": "99"})
    with pytest.raises(ValueError, match="version 99"):
        UnitCodebook.load(path)


def test_too_little_sound_for_the_units_asked_for_is_refused(mels: list[torch.Tensor]) -> None:
    with pytest.raises(ValueError, match="cannot fit 9 units"):
        UnitCodebook.fit([mels[0][:16]], 9)
    silence = log_mel(np.zeros(160000, dtype=np.float32))
    with pytest.raises(ValueError, match="1 different"):
        UnitCodebook.fit([silence], 20)
    with pytest.raises(ValueError, match="no utterances"):
        UnitCodebook.fit([], 9)
    with pytest.raises(ValueError, match=r"\(frames, 128\)"):
        UnitCodebook.fit([mels[0], mels[0][:, :80]], 9)


def test_units_and_durations_out_of_range_are_refused(codebook: UnitCodebook) -> None:
    with pytest.raises(ValueError, match="0-47, got 3-48"):
        codebook.to_waveform([3, 48])
    with pytest.raises(ValueError, match="no units"):
        codebook.to_mel([])
    with pytest.raises(ValueError, match="one per unit"):
        codebook.to_waveform([1, 2, 3], durations=[1, 2])
    with pytest.raises(ValueError, match="whole numbers"):
        collapse_repeats(torch.tensor([0.5]))
    with pytest.raises(ValueError, match="centroids must be"):
        UnitCodebook.from_centroids(np.zeros((1000, 768)), n_mels=128)
