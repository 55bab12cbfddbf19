"""Log-mel spectrograms: whisper's own, at true length, whole and by windows."""

from __future__ import annotations

import librosa
import numpy as np
import pytest
import torch
import whisper

from backbones.speech import log_mel, log_mel_windows
from backbones.speech.mel import mel_filterbank, mel_power


def noise(samples: int, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


@pytest.mark.parametrize("n_mels", [80, 128])
def test_log_mel_is_whispers_at_true_length(n_mels: int) -> None:
    samples = noise(16000 + 333)
    mel = log_mel(samples, n_mels)
    assert mel.shape == (102, n_mels) and mel.dtype == torch.float32
    assert torch.equal(mel.T, whisper.log_mel_spectrogram(samples, n_mels))


@pytest.mark.parametrize("n_mels", [80, 128])
def test_mel_power_undoes_the_scaling(n_mels: int) -> None:
    samples = noise(8000)
    spectrum = np.abs(librosa.stft(samples, n_fft=400, hop_length=160, pad_mode="reflect"))[:, :-1] ** 2
    bands = mel_filterbank(n_mels).numpy() @ spectrum
    np.testing.assert_allclose(mel_power(log_mel(samples, n_mels)).numpy(), bands.T, rtol=2e-3)


def test_level_is_kept_and_only_the_floor_depends_on_the_loudest_moment() -> None:
    samples = noise(16000)
    louder_by_20_db = log_mel(10 * samples) - log_mel(samples)
    torch.testing.assert_close(louder_by_20_db, torch.full_like(louder_by_20_db, 0.5), atol=1e-4, rtol=0)
    quiet_then_loud = np.concatenate([1e-6 * samples, samples])
    assert log_mel(quiet_then_loud)[:90].min() > log_mel(1e-6 * samples)[:90].min() + 0.1


def test_windows_of_30_s_are_each_as_if_alone() -> None:
    samples = noise(2 * 480000 + 40001)
    windows = list(log_mel_windows(samples, 80))
    assert [len(window) for window in windows] == [3000, 3000, 250]
    assert torch.equal(windows[1], log_mel(samples[480000:960000], 80))


@pytest.mark.parametrize("block", [479, 160001, 480000, 700000])
def test_windows_do_not_depend_on_the_blocks_the_sound_comes_in(block: int) -> None:
    samples = noise(480000 + 9001)
    blocks = (samples[start : start + block] for start in range(0, len(samples), block))
    together = torch.cat(list(log_mel_windows(samples, 80)))
    assert torch.equal(torch.cat(list(log_mel_windows(blocks, 80))), together)


@pytest.mark.parametrize("rest", [0, 100, 161, 399, 400])
def test_no_frame_is_lost_where_the_last_window_is_short(rest: int) -> None:
    windows = list(log_mel_windows(noise(480000 + rest), 80))
    assert sum(len(window) for window in windows) == (480000 + rest) // 160


def test_up_to_30_s_one_window_is_the_log_mel() -> None:
    samples = noise(16001)
    (window,) = log_mel_windows(torch.from_numpy(samples))
    assert torch.equal(window, log_mel(samples))


def test_silence_and_a_tenth_of_a_second_have_a_log_mel() -> None:
    silence = log_mel(np.zeros(1600, dtype=np.float32))
    assert silence.shape == (10, 128)
    assert torch.equal(silence, torch.full_like(silence, -1.5))


@pytest.mark.parametrize(
    "samples, n_mels, message",
    [
        (noise(399), 128, "at least 400 samples"),
        (noise(0), 128, "at least 400 samples"),
        (noise(900), 64, r"\(80, 128\)"),
        (noise(900).reshape(2, 450), 128, "mono"),
        ((1000 * noise(900)).astype(np.int16), 128, "int16"),
        (np.full(900, np.nan, dtype=np.float32), 128, "NaN"),
    ],
)
def test_sound_without_a_log_mel_is_refused(samples: np.ndarray, n_mels: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        log_mel(samples, n_mels)
    with pytest.raises(ValueError, match=message):
        list(log_mel_windows(samples, n_mels))
