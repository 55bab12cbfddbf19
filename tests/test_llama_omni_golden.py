"""Llama-Omni against what the original code computed from the same tiny checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from backbones.llama_omni import LlamaOmni


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def original(request: pytest.FixtureRequest, golden: Path) -> LlamaOmni:
    return LlamaOmni.from_checkpoint(golden / "llama_omni", attn_implementation=request.param)


@pytest.fixture(scope="module")
def expected(golden: Path) -> dict[str, Tensor]:
    return load_file(golden / "llama_omni" / "expected.safetensors")


def relative_error(actual: Tensor, wanted: Tensor) -> float:
    assert actual.shape == wanted.shape
    return ((actual - wanted).abs().max() / wanted.abs().max()).item()


@torch.no_grad()
def test_speech_features_are_the_originals(original: LlamaOmni, expected: dict[str, Tensor]) -> None:
    features = original.speech_features(expected["mel"])
    assert len(features) == 1
    assert relative_error(features[0], expected["speech_features"]) < 5e-5


@torch.no_grad()
def test_frozen_frames_give_the_same_features_as_the_mel(original: LlamaOmni, expected: dict[str, Tensor]) -> None:
    frames = original.encode_speech(expected["mel"])
    assert frames.segments[0].shape == (1500, 32)
    assert torch.equal(original.speech_features(frames)[0], original.speech_features(expected["mel"])[0])


@torch.no_grad()
def test_spliced_embeddings_logits_and_hidden_states_are_the_originals(
    original: LlamaOmni, expected: dict[str, Tensor]
) -> None:
    spliced = original.splice(expected["input_ids"], expected["mel"])
    assert relative_error(spliced.inputs_embeds, expected["inputs_embeds"]) < 5e-5
    output = original(expected["input_ids"], speech=expected["mel"])
    assert relative_error(output.logits, expected["logits"]) < 2e-5
    assert relative_error(output.hidden_states, expected["hidden_last"]) < 2e-5


@pytest.mark.parametrize("use_cache", [True, False])
def test_generated_ids_frames_and_units_are_the_originals(
    original: LlamaOmni, expected: dict[str, Tensor], use_cache: bool
) -> None:
    reply = original.generate(
        expected["input_ids"], speech=expected["mel"], max_new_tokens=20, pad_token_id=259, use_cache=use_cache
    )
    assert reply.text_ids.tolist() == expected["gen_ids"].tolist()
    assert reply.ctc_frames is not None
    assert reply.ctc_frames.tolist() == expected["ctc_pred"].tolist()
    assert reply.units.tolist() == expected["units"].tolist()


@torch.no_grad()
def test_the_generator_alone_predicts_the_originals_frames(original: LlamaOmni, expected: dict[str, Tensor]) -> None:
    assert original.speech_generator.predict(expected["gen_h"]).tolist() == expected["gen_pred"][0].tolist()


@torch.no_grad()
def test_stage_two_and_joint_losses_are_the_originals(original: LlamaOmni, expected: dict[str, Tensor]) -> None:
    output = original(
        expected["train_ids"],
        speech=expected["mel"],
        labels=expected["train_labels"],
        target_units=expected["tgt_units"],
        ctc_alignment="original",
    )
    assert output.ctc_loss.item() == pytest.approx(expected["loss_stage2"].item(), rel=1e-5)
    assert output.loss.item() == pytest.approx(expected["loss_joint"].item(), rel=1e-5)
    assert output.infeasible_turns == 0


@torch.no_grad()
def test_an_infeasible_target_adds_nothing_as_in_the_original_but_is_reported(
    original: LlamaOmni, expected: dict[str, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    arguments = {
        "speech": expected["mel"],
        "labels": expected["train_labels"],
        "target_units": expected["tgt_units_long"],
    }
    output = original(expected["train_ids"], **arguments)
    assert output.ctc_loss.item() == expected["loss_stage2_long"].item() == 0.0
    assert output.infeasible_turns == 1
    assert "1 of 1 spoken turns" in caplog.text
    with pytest.raises(ValueError, match="1 of 1 spoken turns"):
        original(expected["train_ids"], **arguments, on_infeasible="raise")


@torch.no_grad()
def test_logits_at_labels_only_give_the_same_losses(original: LlamaOmni, expected: dict[str, Tensor]) -> None:
    full = original(expected["train_ids"], speech=expected["mel"], labels=expected["train_labels"])
    few = original(
        expected["train_ids"],
        speech=expected["mel"],
        labels=expected["train_labels"],
        logits_only_where_labelled=True,
    )
    assert few.logits.shape == (6, 320)
    sample, position = few.token_positions.unbind(dim=1)
    assert torch.allclose(few.logits, full.logits[sample, position - 1], rtol=1e-5, atol=1e-4)
    shifted = torch.nn.functional.cross_entropy(full.logits[0, :-1], full.labels[0, 1:], ignore_index=-100)
    assert few.loss.item() == pytest.approx(shifted.item(), rel=1e-5)
    assert full.loss.item() == pytest.approx(shifted.item(), rel=1e-6)
