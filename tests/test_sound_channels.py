"""Sound by channels: any container, rate and number of channels, in blocks; a file that lies about its length."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from recording_sources import RATE, write_m4a

from backbones.speech import read_audio
from backbones.speech.channels import open_channels

SECONDS = 3.1


@pytest.fixture(scope="module")
def tones() -> np.ndarray:
    """(N, 2) at 44.1 kHz: 440 Hz left, 1,000 Hz right."""
    time = np.arange(round(SECONDS * 44100)) / 44100
    return np.stack([np.sin(2 * np.pi * 440 * time), np.sin(2 * np.pi * 1000 * time)], axis=1).astype(np.float32) / 2


def loudest_hz(samples: np.ndarray) -> float:
    return float(np.argmax(np.abs(np.fft.rfft(samples))) * RATE / len(samples))


@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3", "ogg"])
def test_channels_stay_apart_and_the_length_is_kept(suffix: str, tmp_path: Path, tones: np.ndarray) -> None:
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, tones, 44100)
    opened = open_channels(path)
    samples = np.concatenate(list(opened.blocks))
    assert (opened.format.sample_rate_hz, opened.format.channels) == (44100, 2)
    assert len(samples) / RATE == pytest.approx(SECONDS, abs=0.06)
    assert loudest_hz(samples[:, 0]) == pytest.approx(440, abs=1)
    assert loudest_hz(samples[:, 1]) == pytest.approx(1000, abs=1)


def test_the_mean_of_the_channels_is_what_read_audio_gives(tmp_path: Path, tones: np.ndarray) -> None:
    soundfile.write(tmp_path / "a.flac", tones, 44100)
    samples = np.concatenate(list(open_channels(tmp_path / "a.flac").blocks))
    np.testing.assert_allclose(samples.mean(axis=1), read_audio(tmp_path / "a.flac").samples, atol=1e-5)


def test_m4a_goes_through_ffmpeg(tmp_path: Path, tones: np.ndarray) -> None:
    write_m4a(tmp_path / "a.m4a", np.ascontiguousarray(tones[:, 0]), 44100)
    opened = open_channels(tmp_path / "a.m4a")
    samples = np.concatenate(list(opened.blocks))[:, 0]
    assert opened.format.codec.endswith("/aac")
    assert opened.announced_s == pytest.approx(SECONDS, abs=0.1)
    assert len(samples) / RATE == pytest.approx(SECONDS, abs=0.1)
    assert loudest_hz(samples) == pytest.approx(440, abs=1)


def test_blocks_are_small_whatever_the_length(tmp_path: Path) -> None:
    with soundfile.SoundFile(tmp_path / "long.flac", "w", RATE, 1) as file:
        for _ in range(20):
            file.write(np.zeros(60 * RATE, dtype=np.float32))
    sizes = [len(block) for block in open_channels(tmp_path / "long.flac").blocks]
    assert sum(sizes) == 20 * 60 * RATE
    assert max(sizes) <= 1 << 16


def test_an_m4a_that_ends_before_its_index_says_is_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    write_m4a(tmp_path / "a.m4a", rng.normal(0, 0.1, 8 * RATE).astype(np.float32))
    whole = (tmp_path / "a.m4a").read_bytes()
    index = whole.index(b"moov") - 4
    sound = whole.index(b"mdat") - 4
    # The index stays, a good part of the sound is gone.
    assert sound < index
    (tmp_path / "b.m4a").write_bytes(
        whole[: sound + (index - sound) // 3] + bytes((index - sound) * 2 // 3) + whole[index:]
    )
    with pytest.raises(ValueError, match=r"b\.m4a"):
        list(open_channels(tmp_path / "b.m4a").blocks)


@pytest.mark.parametrize(
    ("content", "told"),
    [(b"", "empty"), (b"no sound " * 99, "cannot be read"), (b"\x89PNG\r\n\x1a\n" + b"x" * 99, "no sound, only video")],
)
def test_what_is_no_sound_is_refused_by_name(content: bytes, told: str, tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(ValueError, match=told):
        list(open_channels(tmp_path / "a.wav").blocks)
