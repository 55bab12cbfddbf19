"""Mimi in both published formats: sound to codes and back, whole and as a stream, from the same weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mimi_checkpoints import (
    CODEBOOK_SIZE,
    CODEBOOKS,
    CONTEXT_STEPS,
    FRAME_SAMPLES,
    STEPS_PER_FRAME,
    moshi_settings,
    noise,
    transformers_config,
    write_mimi_checkpoints,
)
from moshi.models.loaders import get_mimi
from moshi.modules.transformer import StreamingMultiheadAttention
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import DynamicCache

from backbones.moshi.mimi import StreamingMimiDecoder
from backbones.speech.mimi import MimiTokenizer

FRAMES = 17


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The same random weights in both formats: `transformers` and `moshi`, folders."""
    return write_mimi_checkpoints(tmp_path_factory.mktemp("mimi"))


@pytest.fixture
def tokenizer(checkpoints: SimpleNamespace) -> MimiTokenizer:
    return MimiTokenizer.from_folder(checkpoints.transformers, codebooks=CODEBOOKS)


@pytest.fixture
def decoder(checkpoints: SimpleNamespace) -> StreamingMimiDecoder:
    return StreamingMimiDecoder.from_folder(checkpoints.moshi, codebooks=CODEBOOKS)


@pytest.fixture
def codes(tokenizer: MimiTokenizer) -> Tensor:
    return tokenizer.encode(noise(FRAMES * FRAME_SAMPLES), 24000)


def relative(values: np.ndarray, reference: np.ndarray) -> float:
    return float(np.abs(values - reference).max() / np.abs(reference).max())


def pieces(samples: np.ndarray) -> Iterator[np.ndarray]:
    """Cut at odd places, some pieces shorter than a frame and one empty."""
    return iter(np.split(samples, [1, 701, 701, 5003, 19999]))


def test_both_packages_give_the_same_codes_and_sound_from_the_same_weights(
    tokenizer: MimiTokenizer, decoder: StreamingMimiDecoder, codes: Tensor
) -> None:
    assert len(codes.unique()) > CODEBOOK_SIZE // 4, "codes must vary for their equality to say anything"
    sound = torch.from_numpy(noise(FRAMES * FRAME_SAMPLES))[None, None]
    with torch.no_grad():
        assert torch.equal(decoder.mimi.encode(sound)[0], codes)
    assert relative(decoder.decode(codes), tokenizer.decode(codes)) < 1e-5


def test_codes_of_pieces_are_those_of_the_whole_past_the_window(tokenizer: MimiTokenizer) -> None:
    samples = noise(FRAMES * FRAME_SAMPLES - 333)
    assert FRAMES * STEPS_PER_FRAME > 3 * CONTEXT_STEPS
    whole = np.pad(samples, (0, 333))
    with torch.no_grad():
        offline = tokenizer.model.encode(torch.from_numpy(whole)[None, None]).audio_codes[0]
    stream = tokenizer.stream(24000)
    in_pieces = torch.cat([*(stream.push(piece) for piece in pieces(samples)), stream.finish()], dim=1)
    assert in_pieces.shape == (CODEBOOKS, FRAMES)
    assert torch.equal(in_pieces, offline)
    assert torch.equal(tokenizer.encode(samples, 24000), offline)


def test_a_streamed_frame_is_given_as_soon_as_its_samples_are_there(tokenizer: MimiTokenizer) -> None:
    stream = tokenizer.stream(24000)
    assert stream.push(noise(FRAME_SAMPLES - 1)).shape == (CODEBOOKS, 0)
    assert stream.push(noise(1)).shape == (CODEBOOKS, 1)
    assert stream.finish().shape == (CODEBOOKS, 0)
    with pytest.raises(ValueError, match="finished"):
        stream.push(noise(5))


def test_sound_at_another_rate_gives_the_same_codes_whole_and_in_pieces(tokenizer: MimiTokenizer) -> None:
    samples = noise(40001)
    stream = tokenizer.stream(16000)
    in_pieces = torch.cat([*(stream.push(piece) for piece in pieces(samples)), stream.finish()], dim=1)
    # 40001 samples at 16 kHz are 2.5 s, 31.25 frames of 80 ms, and the last one is filled up.
    assert in_pieces.shape == (CODEBOOKS, 32)
    assert torch.equal(in_pieces, tokenizer.encode(samples, 16000))
    at_once = tokenizer.encode_many([samples], 16000)[0]
    assert (at_once == in_pieces).float().mean() > 0.99  # soxr's stream and its one call differ in the last bits


def test_recordings_encoded_together_have_the_codes_they_have_alone(tokenizer: MimiTokenizer) -> None:
    recordings = [noise(length, seed) for seed, length in enumerate((3 * FRAME_SAMPLES + 7, 1, 6 * FRAME_SAMPLES))]
    together = tokenizer.encode_many(recordings, 24000)
    assert [one.shape[1] for one in together] == [4, 1, 6]
    for recording, codes in zip(recordings, together, strict=True):
        assert torch.equal(codes, tokenizer.encode(recording, 24000))


def test_frames_decoded_one_by_one_are_the_sound_of_the_whole_past_the_ring(
    decoder: StreamingMimiDecoder, codes: Tensor
) -> None:
    whole = decoder.decode(codes)
    with decoder.stream() as stream:
        first = stream.push(codes[:, :1])
        frames = [first, *(stream.push(part) for part in codes[:, 1:].split(3, dim=1))]
    assert first.shape == (FRAME_SAMPLES,)
    assert relative(np.concatenate(frames), whole) < 1e-5
    with decoder.stream() as stream:
        assert relative(stream.push(codes[:, :1]), first) == 0.0, "a new stream must start from silence"


def test_the_ring_as_published_loses_a_key_to_every_frame_once_it_is_full(
    checkpoints: SimpleNamespace, decoder: StreamingMimiDecoder, codes: Tensor
) -> None:
    published = get_mimi(checkpoints.moshi / "mimi.safetensors", moshi_settings(), num_codebooks=CODEBOOKS)
    whole = decoder.decode(codes).reshape(FRAMES, FRAME_SAMPLES)
    with torch.no_grad(), published.streaming(1):
        streamed = torch.cat([published.decode(frame[None]) for frame in codes.split(1, dim=1)], dim=2)
    by_frame = np.abs(streamed.numpy().reshape(FRAMES, FRAME_SAMPLES) - whole).max(axis=1) / np.abs(whole).max()
    full_after = CONTEXT_STEPS // STEPS_PER_FRAME
    assert by_frame[:full_after].max() < 1e-5
    assert by_frame[full_after:].min() > 1e-5, by_frame


def test_transformers_own_frame_by_frame_decoding_is_not_the_sound_of_the_whole(
    tokenizer: MimiTokenizer, codes: Tensor
) -> None:
    model, cache = tokenizer.model, DynamicCache(config=tokenizer.model.config)
    frames = []
    with torch.no_grad():
        for frame in codes[None].split(1, dim=2):
            frames.append(model.decode(frame, decoder_past_key_values=cache).audio_values[0, 0])
    whole = tokenizer.decode(codes)
    # When this fails transformers can stream its decoder, and two packages are one too many.
    assert relative(torch.cat(frames).numpy(), whole) > 0.1


def test_random_weights_use_many_codes_and_are_the_same_for_the_same_seed() -> None:
    samples = noise(12 * FRAME_SAMPLES)
    given = [MimiTokenizer.random(transformers_config(), seed, CODEBOOKS).encode(samples, 24000) for seed in (3, 3, 4)]
    assert torch.equal(given[0], given[1])
    assert not torch.equal(given[0], given[2])
    assert len(given[0].unique()) > CODEBOOK_SIZE // 4


def test_fewer_codebooks_are_the_first_ones(checkpoints: SimpleNamespace, codes: Tensor) -> None:
    fewer = MimiTokenizer.from_folder(checkpoints.transformers, codebooks=2)
    samples = noise(FRAMES * FRAME_SAMPLES)
    assert torch.equal(fewer.encode(samples, 24000), codes[:2])
    assert fewer.decode(codes[:2]).shape == (FRAMES * FRAME_SAMPLES,)


@pytest.mark.parametrize(
    ("samples", "says"),
    [
        (np.zeros((2, 50), dtype=np.float32), "mono"),
        (np.zeros(50, dtype=np.int16), "floating"),
        (np.full(3000, np.nan, dtype=np.float32), "3000 of 3000 samples are NaN"),
        (np.zeros(0, dtype=np.float32), "too short"),
    ],
)
def test_sound_that_cannot_be_encoded_is_refused(tokenizer: MimiTokenizer, samples: np.ndarray, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        tokenizer.encode(samples, 24000)


def test_codes_that_are_none_are_refused(decoder: StreamingMimiDecoder, tokenizer: MimiTokenizer) -> None:
    for wrong in (torch.zeros(2, 5, dtype=torch.int64), torch.zeros(CODEBOOKS, 0, dtype=torch.int64),
                  torch.zeros(CODEBOOKS, 5)):  # fmt: skip
        with pytest.raises(ValueError, match=r"codes must be int64 of shape \(4 codebooks"):
            decoder.decode(wrong)
    with pytest.raises(ValueError, match=f"0 to {CODEBOOK_SIZE - 1}, got 0 to {CODEBOOK_SIZE}"):
        tokenizer.decode(torch.tensor([[0], [1], [2], [CODEBOOK_SIZE]]))


def test_a_decoder_has_one_stream_at_a_time(decoder: StreamingMimiDecoder, codes: Tensor) -> None:
    with decoder.stream() as stream:
        with pytest.raises(ValueError, match="already has an open stream"), decoder.stream():
            pass
        with pytest.raises(ValueError, match="close it before"):
            decoder.decode(codes)
    with pytest.raises(ValueError, match="closed"):
        stream.push(codes)


def test_faulty_transformers_folders_are_named(checkpoints: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has 4 codebooks.*codebooks=5"):
        MimiTokenizer.from_folder(checkpoints.transformers, codebooks=5)
    with pytest.raises(ValueError, match=r"no file .*config\.json"):
        MimiTokenizer.from_folder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "encodec"}))
    with pytest.raises(ValueError, match="'encodec', not 'mimi'"):
        MimiTokenizer.from_folder(tmp_path)
    (tmp_path / "config.json").write_text((checkpoints.transformers / "config.json").read_text())
    with pytest.raises(ValueError, match=r"has no model\.safetensors"):
        MimiTokenizer.from_folder(tmp_path)
    weights = load_file(checkpoints.transformers / "model.safetensors")
    del weights["upsample.conv.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"model\.safetensors lacks .*upsample\.conv\.weight$"):
        MimiTokenizer.from_folder(tmp_path)
    weights["upsample.conv.weight"] = torch.zeros(32, 1, 3)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"has, in another shape, .*upsample\.conv\.weight"):
        MimiTokenizer.from_folder(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x01" * 40)
    with pytest.raises(ValueError, match=r"model\.safetensors is no readable safetensors file"):
        MimiTokenizer.from_folder(tmp_path)


def test_faulty_moshi_files_are_named(checkpoints: SimpleNamespace, tmp_path: Path) -> None:
    weights, config = checkpoints.moshi / "mimi.safetensors", checkpoints.moshi / "mimi.json"
    with pytest.raises(ValueError, match=r"no Mimi at .*gone\.safetensors"):
        StreamingMimiDecoder.from_file(tmp_path / "gone.safetensors")
    with pytest.raises(ValueError, match="no Mimi of 9 codebooks"):
        StreamingMimiDecoder.from_file(weights, config, codebooks=9)
    tensors = load_file(weights)
    tensors["own.weight"] = tensors.pop("upsample.convtr.convtr.convtr.weight")
    save_file(tensors, tmp_path / "renamed.safetensors")
    with pytest.raises(ValueError, match=r"missing upsample\.convtr\.convtr\.convtr\.weight; unexpected own\.weight"):
        StreamingMimiDecoder.from_file(tmp_path / "renamed.safetensors", config, codebooks=CODEBOOKS)
    (tmp_path / "cut.safetensors").write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"cut\.safetensors is no Mimi"):
        StreamingMimiDecoder.from_file(tmp_path / "cut.safetensors", config, codebooks=CODEBOOKS)
    (tmp_path / "other.json").write_text(json.dumps({"sample_rate": 24000}))
    with pytest.raises(ValueError, match=r"made from .*other\.json: KeyError"):
        StreamingMimiDecoder.from_file(weights, tmp_path / "other.json", codebooks=CODEBOOKS)


def test_a_decoder_made_of_a_loaded_mimi_keeps_its_parameter_names(checkpoints: SimpleNamespace) -> None:
    mimi = get_mimi(checkpoints.moshi / "mimi.safetensors", moshi_settings(), num_codebooks=CODEBOOKS)
    before = list(mimi.state_dict())
    decoder = StreamingMimiDecoder(mimi)
    assert list(decoder.mimi.state_dict()) == before
    contexts = {m.context for m in decoder.mimi.modules() if isinstance(m, StreamingMultiheadAttention)}
    assert contexts == {CONTEXT_STEPS}, "room in the ring must not widen what attention sees"
