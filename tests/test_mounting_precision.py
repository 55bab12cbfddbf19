"""Precision policies and inner-optimiser options of a mounted model: through generation, files and byte counts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from mounting_models import VOCABULARY, tiny_model, tiny_ttt
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from backbones.mounting import describe, load_cache, load_mounted, load_ttt, mount, save_cache, save_ttt

IDS = torch.arange(2 * 17).reshape(2, 17) * 7 % VOCABULARY


def mounted(**ttt: object) -> PreTrainedModel:
    return mount(tiny_model(), layers=[1, 3], config=tiny_ttt(**ttt), window=5, sinks=2)


@torch.no_grad()
@pytest.mark.parametrize(
    "ttt",
    [
        {"precision": "bf16_compensated", "inner_momentum": 0.5, "inner_clip_norm": 0.2},
        {"precision": "bf16_stochastic", "renormalises_inner_weights": True},
        {"precision": "fp64", "inner_decay": 0.1, "inner_decay_toward": "zero"},
    ],
)
def test_a_conversation_goes_through_beams_and_files_under_a_policy(ttt: dict[str, object], tmp_path: Path) -> None:
    model = mounted(**ttt)
    ids = IDS.clamp_min(1)
    greedy = model.generate(ids, max_new_tokens=9, do_sample=False, num_beams=2)
    assert torch.equal(model.generate(ids, max_new_tokens=9, do_sample=False, num_beams=2), greedy)
    cache = model(ids[:, :9]).past_key_values
    state = cache[1]
    assert state.config.precision == ttt["precision"] and state.nbytes == model_bytes(model) * 2
    save_cache(cache, tmp_path / "c.safetensors", model)
    model.save_pretrained(tmp_path / "model")
    model = load_mounted(tmp_path / "model").eval()
    loaded = load_cache(tmp_path / "c.safetensors", model)
    assert loaded[1].weights.W1.dtype == state.weights.W1.dtype and loaded.nbytes == cache.nbytes
    for tokens in (ids[:, 9:10], ids[:, 10:]):
        expected = model(tokens, past_key_values=cache).logits
        assert torch.equal(model(tokens, past_key_values=loaded).logits, expected)
    with pytest.raises(ValueError, match="mounted otherwise: ttt is"):
        load_cache(tmp_path / "c.safetensors", mounted())


def model_bytes(model: PreTrainedModel) -> int:
    return next(layer.bytes_fixed for layer in describe(model).layers if layer.layer == 1)


def test_weights_trained_in_fp32_are_loaded_into_a_model_of_any_policy_and_option(tmp_path: Path) -> None:
    trained, path = mounted(), tmp_path / "ttt.safetensors"
    save_ttt(trained, path)
    other = mounted(precision="bf16", inner_momentum=0.5)
    with torch.no_grad():
        other.model.layers[1].self_attn.ttt.inner.W1.zero_()
    load_ttt(other, path)
    learned = trained.model.layers[1].self_attn.ttt.inner.W1
    assert torch.equal(other.model.layers[1].self_attn.ttt.inner.W1, learned)


@torch.no_grad()
def test_a_conversation_saved_before_there_were_policies_is_an_fp32_one(tmp_path: Path) -> None:
    model, path = mounted(), tmp_path / "c.safetensors"
    save_cache(model(IDS).past_key_values, path, model)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    identity = json.loads(metadata["config"])
    assert identity["ttt"].pop("precision") == "fp32" and identity["ttt"].pop("carries_velocity") is False
    save_file(load_file(path), path, metadata | {"config": json.dumps(identity)})
    assert load_cache(path, model).get_seq_length() == IDS.shape[1]
    with pytest.raises(ValueError, match="mounted otherwise: ttt is"):
        load_cache(path, mounted(precision="bf16"))
