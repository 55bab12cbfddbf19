"""The unit vocoder against the published implementation's waveforms, and against itself in pieces."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from backbones.llama_omni.vocoder import PUBLISHED_VOCODER_CONFIG, UnitVocoder
from backbones.llama_omni.vocoder_layers import VocoderShape, receptive_field_frames

SMALL_CONFIG: dict[str, Any] = PUBLISHED_VOCODER_CONFIG | {
    "upsample_rates": [3, 2],
    "upsample_kernel_sizes": [5, 4],
    "upsample_initial_channel": 16,
    "resblock_kernel_sizes": [3, 5],
    "resblock_dilation_sizes": [[1, 2], [1, 3]],
    "num_embeddings": 11,
    "embedding_dim": 8,
    "model_in_dim": 8,
    "code_hop_size": 6,
    "dur_predictor_params": {"encoder_embed_dim": 8, "var_pred_hidden_dim": 12, "var_pred_kernel_size": 3},
}


@pytest.fixture(scope="module")
def folder(golden: Path) -> Path:
    return golden / "unit_vocoder"


@pytest.fixture(scope="module")
def vocoder(folder: Path) -> UnitVocoder:
    return UnitVocoder.from_checkpoint(folder)


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "expected.safetensors")


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    for name in ("config.json", "g_00500000"):
        shutil.copy(folder / name, tmp_path / name)
        (tmp_path / name).chmod(0o644)
    return tmp_path


def small_vocoder(seed: int = 0) -> UnitVocoder:
    """Random weights, large enough that units differ in length and a wrong context is heard far above rounding."""
    torch.manual_seed(seed)
    vocoder = UnitVocoder(SMALL_CONFIG)
    with torch.no_grad():
        for name, parameter in vocoder.generator.named_parameters():
            if name.startswith("dur_predictor.proj"):
                parameter.normal_()
            elif name.endswith("original0"):
                parameter.mul_(1.5)
    return vocoder


@pytest.mark.parametrize("durations, name", [(True, "wav_with_durations"), (False, "wav_without_durations")])
def test_the_waveform_is_the_published_implementations(
    vocoder: UnitVocoder, expected: dict[str, torch.Tensor], durations: bool, name: str
) -> None:
    waveform = vocoder(expected["code"], durations=durations)
    assert waveform.dim() == 1
    torch.testing.assert_close(waveform, expected[name].flatten(), atol=1e-5, rtol=0)


def test_the_durations_are_the_published_implementations(
    vocoder: UnitVocoder, expected: dict[str, torch.Tensor]
) -> None:
    assert vocoder.predict_durations(expected["code"]).tolist() == expected["durations"][0].tolist()
    given_durations = vocoder(expected["code"], durations=expected["durations"])
    torch.testing.assert_close(given_durations, expected["wav_with_durations"].flatten(), atol=1e-5, rtol=0)


def test_the_published_sizes_look_21_frames_to_each_side(vocoder: UnitVocoder) -> None:
    assert receptive_field_frames(VocoderShape.from_published(PUBLISHED_VOCODER_CONFIG)) == 21
    assert vocoder.receptive_field_frames == 21


@pytest.mark.parametrize("which", ["golden", "small"])
def test_autograd_reaches_exactly_as_far_as_the_computed_receptive_field(vocoder: UnitVocoder, which: str) -> None:
    model = UnitVocoder(vocoder.config if which == "golden" else SMALL_CONFIG)
    generator = model.generator.double()
    reach, step = model.receptive_field_frames, model.samples_per_frame
    frames, middle = 2 * reach + 9, reach + 4
    embedded = torch.randn(1, model.shape.channels_in, frames, dtype=torch.float64, requires_grad=True)
    # Random weights of the sum: nothing cancels exactly in FP64, so whatever can reach a sample has a gradient.
    samples = generator(embedded)[0, middle * step : (middle + 1) * step]
    weights = torch.randn_like(samples)
    (gradient,) = torch.autograd.grad((samples * weights).sum(), embedded)
    touched = gradient[0].abs().amax(dim=0).nonzero().flatten() - middle
    assert int(touched.abs().max()) == reach


@pytest.mark.parametrize("chunk_frames, durations", [(1, False), (7, False), (21, True), (50, True), (1000, True)])
def test_the_chunks_of_a_stream_are_the_whole(
    vocoder: UnitVocoder, expected: dict[str, torch.Tensor], chunk_frames: int, durations: bool
) -> None:
    units = expected["code"][0]
    whole = vocoder(units, durations=durations)
    chunks = list(vocoder.stream(units.tolist(), durations=durations, chunk_frames=chunk_frames))
    assert all(len(chunk) == chunk_frames * 320 for chunk in chunks[:-1])
    torch.testing.assert_close(torch.cat(chunks), whole, atol=1e-6, rtol=0)
    torch.testing.assert_close(vocoder(units, durations, chunk_frames), whole, atol=1e-6, rtol=0)


@settings(max_examples=40, deadline=None)
@given(
    units=st.lists(st.integers(0, 10), min_size=1, max_size=40),
    cuts=st.lists(st.integers(0, 40), max_size=6),
    chunk_frames=st.integers(1, 33),
    durations=st.booleans(),
)
def test_any_arrival_of_the_units_and_any_chunk_size_gives_the_whole(
    units: list[int], cuts: list[int], chunk_frames: int, durations: bool
) -> None:
    vocoder = small_vocoder()
    edges = [0, *sorted(min(cut, len(units)) for cut in cuts), len(units)]
    pieces = [torch.tensor(units[a:b], dtype=torch.int64) for a, b in pairwise(edges)]
    streamed = torch.cat(list(vocoder.stream(pieces, durations=durations, chunk_frames=chunk_frames)))
    torch.testing.assert_close(streamed, vocoder(units, durations=durations), atol=1e-6, rtol=0)


def test_one_frame_of_context_too_few_is_heard() -> None:
    vocoder = small_vocoder()
    units = torch.randint(0, 11, (60,))
    whole = vocoder(units, durations=False)
    vocoder.receptive_field_frames //= 2
    streamed = torch.cat(list(vocoder.stream([units], durations=False, chunk_frames=5)))
    assert (streamed - whole).abs().max() > 1e-4


def test_the_random_predictor_gives_units_of_different_lengths() -> None:
    durations = small_vocoder().predict_durations(torch.arange(11))
    assert len(set(durations.tolist())) > 2 and int(durations.min()) >= 1


def test_a_stream_gives_sound_before_its_units_end(vocoder: UnitVocoder) -> None:
    taken = []

    def endless() -> Any:
        while True:
            taken.append(len(taken) % 50)
            yield taken[-1]

    first = next(vocoder.stream(endless(), durations=False, chunk_frames=10))
    assert len(first) == 10 * 320
    assert len(taken) == 10 + vocoder.receptive_field_frames


def test_saving_and_loading_gives_the_same_bits(copied: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    again = tmp_path_factory.mktemp("vocoder")
    UnitVocoder.from_checkpoint(copied).save(again)
    before = torch.load(copied / "g_00500000", weights_only=True)["generator"]
    after = torch.load(again / "g_00500000", weights_only=True)["generator"]
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert json.loads((again / "config.json").read_text()) == json.loads((copied / "config.json").read_text())
    units = [3, 1, 4, 1, 5, 9]
    assert torch.equal(UnitVocoder.from_checkpoint(again)(units), UnitVocoder.from_checkpoint(copied)(units))


def test_the_published_config_builds_a_vocoder_of_1000_units() -> None:
    with torch.device("meta"):
        vocoder = UnitVocoder(PUBLISHED_VOCODER_CONFIG)
    assert vocoder.generator.dict.weight.shape == (1000, 128)
    assert vocoder.samples_per_frame == 320 and vocoder.sample_rate_hz == 16000
    assert sum(parameter.numel() for parameter in vocoder.generator.parameters()) > 10e6
    assert vocoder.generator.dur_predictor is not None


@pytest.mark.parametrize(
    "units, message",
    [
        ([], "no units"),
        ([3, 50], "0-49, got 3-50"),
        ([-1, 2], "0-49"),
        ([0.5, 1.0], "whole numbers"),
        (torch.zeros(2, 3, dtype=torch.int64), "one sequence"),
    ],
)
def test_units_that_cannot_be_spoken_are_refused(vocoder: UnitVocoder, units: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vocoder(units)


@pytest.mark.parametrize("durations", [[1, 2], [1, 0, 2], [1.0, 2.0, 3.0]])
def test_durations_that_do_not_fit_the_units_are_refused(vocoder: UnitVocoder, durations: list[Any]) -> None:
    with pytest.raises(ValueError, match="durations must be 3 whole numbers"):
        vocoder([1, 2, 3], durations=durations)


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"upsample_initial_channel": 96}, "has shape .*, the config needs"),
        ({"num_embeddings": 51}, r"dict.weight has shape \(50, 16\), the config needs \(51, 16\)"),
        ({"dur_predictor_params": None}, "in excess dur_predictor"),
        ({"resblock_kernel_sizes": [3, 7, 11, 13], "resblock_dilation_sizes": [[1, 3, 5]] * 4}, "lacks resblocks"),
        ({"code_hop_size": 160}, "code_hop_size 160"),
        ({"f0": True}, "'f0'"),
        ({"multispkr": "single"}, "'multispkr'"),
        ({"resblock": "2"}, "resblock '2'"),
        ({"model_in_dim": 80}, "model_in_dim 80"),
    ],
)
def test_a_config_that_is_not_the_weights_is_refused(copied: Path, changes: dict[str, Any], message: str) -> None:
    edit_config(copied, **changes)
    with pytest.raises(ValueError, match=message):
        UnitVocoder.from_checkpoint(copied)


def test_a_weights_file_that_is_damaged_is_refused(copied: Path) -> None:
    weights = copied / "g_00500000"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(ValueError, match="not a readable torch weights file"):
        UnitVocoder.from_checkpoint(copied)
    torch.save({"model": {}}, weights)
    with pytest.raises(ValueError, match="generator"):
        UnitVocoder.from_checkpoint(copied)


def test_a_folder_without_exactly_one_weights_file_is_refused(copied: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no vocoder at"):
        UnitVocoder.from_checkpoint(tmp_path / "nowhere")
    shutil.copy(copied / "g_00500000", copied / "g_00600000")
    with pytest.raises(ValueError, match="exactly one"):
        UnitVocoder.from_checkpoint(copied)
    (copied / "g_00500000").unlink()
    assert UnitVocoder.from_checkpoint(copied).receptive_field_frames == 21
    (copied / "g_00600000").unlink()
    with pytest.raises(ValueError, match="exactly one"):
        UnitVocoder.from_checkpoint(copied)


def test_without_a_duration_predictor_the_durations_must_be_given() -> None:
    vocoder = UnitVocoder({name: value for name, value in SMALL_CONFIG.items() if name != "dur_predictor_params"})
    assert len(vocoder([1, 2, 3], durations=False)) == 3 * 6
    assert len(vocoder([1, 2, 3], durations=[2, 1, 4])) == 7 * 6
    with pytest.raises(ValueError, match="no duration predictor"):
        vocoder([1, 2, 3])
