"""Qwen + Mimi from sound to sound: a small random Mimi, whole and as a stream."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from qwen_mimi_models import model_of, tiny_mimi

from backbones.qwen_mimi import GREEDY, QwenMimi, SaidFrame, answer, converse, heard_frames, load, save
from backbones.speech.mimi import MimiTokenizer, Samples

FRAME_SAMPLES, FRAMES = 1920, 5


@pytest.fixture(scope="module")
def model() -> QwenMimi:
    model = model_of("ttt")
    model.attach_mimi(tiny_mimi())
    return model


def noise(samples: int) -> Samples:
    return np.random.default_rng(0).standard_normal(samples).astype(np.float32) / 10


class Decoding:
    """Stands in for moshi's streaming decoder: gives each frame's codes and a sound of a frame's length."""

    def __init__(self) -> None:
        self.pushed: list[torch.Tensor] = []

    def push(self, codes: torch.Tensor) -> Samples:
        self.pushed.append(codes)
        return np.zeros(codes.shape[1] * FRAME_SAMPLES, dtype=np.float32)


def test_frames_are_heard_as_soon_as_they_are_whole(model: QwenMimi) -> None:
    assert model.mimi is not None
    samples = noise(FRAMES * FRAME_SAMPLES - 100)
    asked: list[int] = []

    def blocks() -> object:
        for block in np.split(samples, [FRAME_SAMPLES // 2, 2 * FRAME_SAMPLES + 5]):
            asked.append(len(block))
            yield block

    frames = heard_frames(model.mimi, blocks(), 24_000)
    assert next(frames).shape == (1, 3) and len(asked) == 2
    rest = list(frames)
    assert len(rest) == FRAMES - 1
    whole = model.mimi.encode(samples, 24_000)
    assert torch.equal(torch.cat(rest).T, whole[:, 1:])
    with pytest.raises(ValueError, match="no sound was heard"):
        list(heard_frames(model.mimi, [], 24_000))


def test_a_recording_is_answered_with_one_frame_more_than_it_has(model: QwenMimi) -> None:
    said, sound = answer(model, noise(2 * FRAMES * FRAME_SAMPLES), 48_000, GREEDY)
    assert said.text.shape == (1, FRAMES + 1) and said.codes.shape == (1, 3, FRAMES + 1)
    assert sound.shape == ((FRAMES + 1) * FRAME_SAMPLES,) and np.isfinite(sound).all() and sound.any()


def test_a_conversation_in_pieces_says_what_the_whole_says(model: QwenMimi) -> None:
    samples, decoding = noise(FRAMES * FRAME_SAMPLES), Decoding()
    whole, _ = answer(model, samples, 24_000, GREEDY)
    said: list[SaidFrame] = []
    for frame, sound in converse(model, decoding, np.array_split(samples, 7), 24_000, GREEDY):
        said.append(frame)
        assert sound.shape == (FRAME_SAMPLES,)
    assert torch.equal(torch.cat(decoding.pushed, dim=1), whole.codes[0])
    assert torch.equal(torch.cat([frame.text for frame in said]), whole.text[0])


def test_the_sound_of_a_conversation_is_that_of_its_codes_decoded_whole(tmp_path: Path) -> None:
    """By Mimi's two published implementations: heard through transformers', said through moshi's, frame by frame."""
    pytest.importorskip("moshi", reason="needs moshi; runs where `make setup` was")
    from mimi_checkpoints import CODEBOOK_SIZE, CODEBOOKS, write_mimi_checkpoints

    from backbones.moshi.mimi import StreamingMimiDecoder

    folders = write_mimi_checkpoints(tmp_path)
    model = model_of("ttt", codebooks=CODEBOOKS, codebook_size=CODEBOOK_SIZE)
    mimi = MimiTokenizer.from_folder(folders.transformers, CODEBOOKS)
    model.attach_mimi(mimi)
    decoder = StreamingMimiDecoder.from_folder(folders.moshi, CODEBOOKS)
    frames = 9  # past the ten steps that Mimi's own transformer sees
    with decoder.stream() as decoding:
        pairs = list(converse(model, decoding, np.array_split(noise(frames * FRAME_SAMPLES), 4), 24_000, GREEDY))
    codes = torch.stack([said.codes[0] for said, _ in pairs], dim=1)
    sound, whole = np.concatenate([sound for _, sound in pairs]), mimi.decode(codes)
    assert sound.shape == whole.shape == ((frames + 1) * FRAME_SAMPLES,)
    assert np.abs(sound - whole).max() < 1e-5 * np.abs(whole).max()
    assert len(codes.unique()) > 10


def test_a_folder_with_a_mimi_in_it_loads_both(model: QwenMimi, tmp_path: Path) -> None:
    assert model.mimi is not None
    save(model, tmp_path)
    assert load(tmp_path).mimi is None
    model.mimi.model.save_pretrained(tmp_path / "mimi")
    loaded = load(tmp_path)
    samples = noise(FRAMES * FRAME_SAMPLES)
    (said, sound), (expected, expected_sound) = (answer(one, samples, 24_000, GREEDY) for one in (loaded, model))
    assert torch.equal(said.codes, expected.codes)
    np.testing.assert_array_equal(sound, expected_sound)


def test_without_a_mimi_or_with_another_one_there_is_no_sound() -> None:
    model = model_of("plain")
    with pytest.raises(ValueError, match="the model has no Mimi to hear through"):
        answer(model, noise(FRAME_SAMPLES), 24_000)
    with pytest.raises(ValueError, match="gives 2 codebooks of 32 codes, the model knows 3 of 32"):
        model.attach_mimi(tiny_mimi(codebooks=2))
    with pytest.raises(ValueError, match="gives 3 codebooks of 64 codes, the model knows 3 of 32"):
        model.attach_mimi(tiny_mimi(codebook_size=64))
