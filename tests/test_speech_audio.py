"""Reading and writing audio: what comes out for good files, and what is said about bad ones."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from backbones.speech import Audio, read_audio, read_audio_files, stream_audio, write_audio


def tone(seconds: float, rate_hz: int, frequency_hz: float = 440.0) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * frequency_hz * np.arange(round(seconds * rate_hz)) / rate_hz)).astype(np.float32)


def noise(samples: int, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".mp3", ".ogg"])
def test_every_common_format_gives_16_khz_mono_of_the_right_length(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"sound{suffix}"
    soundfile.write(path, tone(1.3, 44100), 44100)
    audio = read_audio(path)
    assert audio.sample_rate_hz == 16000 and audio.samples.dtype == np.float32 and audio.samples.ndim == 1
    assert audio.duration_s == pytest.approx(1.3, abs=0.002)
    middle = slice(4000, 16000)
    assert np.corrcoef(audio.samples[middle], tone(1.3, 16000)[: len(audio.samples)][middle])[0, 1] > 0.99


@pytest.mark.parametrize("rate_hz", [8000, 11025, 48000])
def test_another_rate_is_converted_as_soxr_converts_the_whole(tmp_path: Path, rate_hz: int) -> None:
    samples = noise(3 * rate_hz + 77)
    soundfile.write(tmp_path / "sound.wav", samples, rate_hz, subtype="FLOAT")
    np.testing.assert_allclose(
        read_audio(tmp_path / "sound.wav").samples, soxr.resample(samples, rate_hz, 16000), atol=1e-6
    )


def test_8_khz_keeps_its_pitch(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "sound.wav", tone(1.0, 8000, 1000.0), 8000)
    spectrum = np.abs(np.fft.rfft(read_audio(tmp_path / "sound.wav").samples))
    assert spectrum.argmax() == 1000


def test_channels_are_averaged(tmp_path: Path) -> None:
    both = np.stack([noise(5001, 1), noise(5001, 2), noise(5001, 3)], axis=1)
    soundfile.write(tmp_path / "sound.wav", both, 16000, subtype="FLOAT")
    np.testing.assert_allclose(read_audio(tmp_path / "sound.wav").samples, both.mean(axis=1), atol=1e-7)


@pytest.mark.parametrize("rate_hz", [16000, 22050])
@pytest.mark.parametrize("seconds", [0.0371, 1.0, 7.77])
def test_the_blocks_of_a_stream_are_the_whole(tmp_path: Path, rate_hz: int, seconds: float) -> None:
    soundfile.write(tmp_path / "sound.wav", noise(5 * rate_hz + 13), rate_hz)
    whole = read_audio(tmp_path / "sound.wav").samples
    blocks = list(stream_audio(tmp_path / "sound.wav", seconds))
    assert all(len(block) == round(seconds * 16000) for block in blocks[:-1])
    np.testing.assert_allclose(np.concatenate(blocks), whole, atol=1e-4)


def test_20_minutes_are_streamed_in_the_memory_of_a_few_blocks(tmp_path: Path) -> None:
    minute = noise(8000 * 60)
    with soundfile.SoundFile(tmp_path / "long.wav", "w", samplerate=8000, channels=1) as file:
        for _ in range(20):
            file.write(minute)
    tracemalloc.start()
    total = sum(len(block) for block in stream_audio(tmp_path / "long.wav", 10.0))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == 20 * 60 * 16000
    assert peak_bytes < 8e6 < 4 * total / 8


def test_silence_and_a_tenth_of_a_second_are_read_as_they_are(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "silence.wav", np.zeros(1600), 16000)
    audio = read_audio(tmp_path / "silence.wav")
    assert len(audio.samples) == 1600 and not audio.samples.any()


def bad_files(folder: Path) -> dict[str, Path]:
    """One file of every kind of damage, by what its error says."""
    samples = noise(30000)
    soundfile.write(folder / "good.wav", samples, 16000)
    soundfile.write(folder / "good.flac", samples, 16000)
    soundfile.write(folder / "good.mp3", samples, 16000)
    whole = {name: (folder / f"good.{name}").read_bytes() for name in ("wav", "flac", "mp3")}
    holed = bytearray(whole["flac"])
    holed[len(holed) // 2 : len(holed) // 2 + 3000] = b"\xa5" * 3000
    contents = {
        "empty": ("empty.wav", b""),
        "cannot be read as audio": ("text.wav", b"these are words, not samples" * 50),
        "of a format libsndfile does not know": ("phone.m4a", b"\0\0\0\x20ftypM4A \0\0\0\0" + bytes(3000)),
        "holds no samples": ("header.wav", b""),
        "announces 60000 bytes of sound": ("cut.wav", whole["wav"][:30001]),
        "damaged after": ("holed.flac", bytes(holed)),
        "cut short or damaged: it announces": ("cut.mp3", whole["mp3"][: len(whole["mp3"]) // 2]),
    }
    paths = {"no audio file at": folder / "nowhere.wav", "is a folder": folder}
    for reason, (name, content) in contents.items():
        paths[reason] = folder / name
        paths[reason].write_bytes(content)
    soundfile.write(paths["holds no samples"], np.zeros(0), 16000)
    paths["NaN or infinite"] = folder / "nan.wav"
    soundfile.write(paths["NaN or infinite"], np.array([0.0, np.nan, 0.1]), 16000, subtype="FLOAT")
    return paths


def test_each_kind_of_bad_file_is_refused_with_its_name_and_reason(tmp_path: Path) -> None:
    for reason, path in bad_files(tmp_path).items():
        with pytest.raises(ValueError, match=reason) as caught:
            read_audio(path)
        assert str(path) in str(caught.value)


def test_bad_files_are_skipped_only_if_asked_and_then_listed(tmp_path: Path) -> None:
    bad = bad_files(tmp_path)
    paths = [tmp_path / "good.wav", *bad.values(), tmp_path / "good.flac"]
    with pytest.raises(ValueError, match="no audio file at"):
        read_audio_files(paths)
    audios, skipped = read_audio_files(paths, skip_bad=True)
    assert [audio.source for audio in audios] == [str(tmp_path / "good.wav"), str(tmp_path / "good.flac")]
    assert [file.path for file in skipped] == [str(path) for path in bad.values()]
    assert all(reason in file.reason for reason, file in zip(bad, skipped, strict=True))


def test_wav_whose_writer_could_not_seek_back_is_not_called_cut_short(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "piped.wav", noise(4000), 16000)
    content = bytearray((tmp_path / "piped.wav").read_bytes())
    content[4:8] = content[40:44] = b"\xff\xff\xff\xff"
    (tmp_path / "piped.wav").write_bytes(content)
    assert len(read_audio(tmp_path / "piped.wav").samples) == 4000


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_what_is_written_is_read_back_to_16_bits(tmp_path: Path, suffix: str) -> None:
    samples = noise(4801)
    assert write_audio(tmp_path / f"out{suffix}", samples, 16000) == 1.0
    assert soundfile.info(tmp_path / f"out{suffix}").subtype == "PCM_16"
    np.testing.assert_allclose(read_audio(tmp_path / f"out{suffix}").samples, samples, atol=1 / 32768)


def test_a_peak_beyond_full_scale_is_scaled_down_and_not_clipped(tmp_path: Path) -> None:
    samples = 5 * tone(0.5, 16000)
    gain = write_audio(tmp_path / "loud.wav", samples, 16000)
    assert gain == pytest.approx(1 / np.abs(samples).max())
    np.testing.assert_allclose(read_audio(tmp_path / "loud.wav").samples, samples * gain, atol=2 / 32768)


def test_two_channels_are_written_as_two(tmp_path: Path) -> None:
    write_audio(tmp_path / "stereo.wav", np.stack([tone(0.1, 16000), noise(1600)], axis=1), 16000)
    assert soundfile.info(tmp_path / "stereo.wav").channels == 2


@pytest.mark.parametrize(
    "name, samples, message",
    [
        ("a.wav", np.array([0.0, np.nan]), "1 samples are NaN"),
        ("a.wav", np.zeros(0), "shape"),
        ("a.wav", np.array([1, 2]), "floating"),
        ("a.mp3", np.zeros(9), "must end in"),
    ],
)
def test_samples_that_cannot_be_written_are_refused(
    tmp_path: Path, name: str, samples: np.ndarray, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write_audio(tmp_path / name, samples, 16000)
    assert not (tmp_path / name).exists()


def test_audio_of_another_dtype_or_of_two_channels_is_refused() -> None:
    with pytest.raises(ValueError, match="float32"):
        Audio(np.zeros(5), 16000, "made up")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"\(5, 2\)"):
        Audio(np.zeros((5, 2), dtype=np.float32), 16000, "made up")
