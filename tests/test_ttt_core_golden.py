"""The layer against vectors written by ttt-lm-pytorch: outputs, states, decoding and gradients."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from ttt_core import TTTConfig, TTTLayer
from ttt_core.ttt_lm import ttt_lm_name

CASES = ["lm_linear_base", "lm_linear_mamba", "lm_mlp_base", "lm_mlp_mamba"]
FP32_OUTPUT, FP32_GRADIENT, FP64 = 2e-5, 5e-5, 2e-6


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest difference as a share of the reference tensor's largest absolute value."""
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def read_case(golden: Path, name: str, backend: str) -> tuple[TTTConfig, dict[str, torch.Tensor]]:
    path = golden / f"{name}.safetensors"
    with safe_open(path, framework="pt") as file:
        given = {key: json.loads(value) for key, value in file.metadata().items()}
    config = TTTConfig(
        hidden_size=given["hidden_size"],
        num_heads=given["num_attention_heads"],
        inner_model=given["ttt_layer_type"],
        mini_batch_size=given["mini_batch_size"],
        base_lr=given["ttt_base_lr"],
        rope_theta=given["rope_theta"],
        share_qk=given["share_qk"],
        use_gate=given["use_gate"],
        pre_conv=given["pre_conv"],
        conv_kernel=given["conv_kernel"],
        backend=backend,
    )
    return config, load_file(path) | load_file(golden / "lm_inputs.safetensors")


def build(config: TTTConfig, tensors: dict[str, torch.Tensor]) -> TTTLayer:
    weights = {name.removeprefix("param."): value for name, value in tensors.items() if name.startswith("param.")}
    return TTTLayer.from_ttt_lm(weights, config)


@pytest.mark.parametrize("backend", ["sequential", "chunked"])
@pytest.mark.parametrize("case", CASES)
def test_outputs_states_and_every_gradient_match_the_published_implementation(golden, case, backend) -> None:
    config, tensors = read_case(golden, case, backend)
    layer = build(config, tensors)
    rows = tensors["A.out"].shape[0]
    x = tensors["A.x"][:rows].clone().requires_grad_()
    out, attention, state = layer(x)
    assert attention is None
    assert relative_error(out, tensors["A.out"]) < FP32_OUTPUT
    for name in ("W1", "b1", "W2", "b2"):
        if f"A.final.{name}" in tensors:
            assert relative_error(getattr(state, name), tensors[f"A.final.{name}"]) < FP32_OUTPUT, name

    (out * tensors["A.grad_out"][:rows]).sum().backward()
    assert relative_error(x.grad, tensors["A.grad_x"]) < FP32_GRADIENT
    checked = 0
    for name, parameter in layer.named_parameters():
        theirs = tensors[f"A.grad.{ttt_lm_name(name)}"]
        assert relative_error(parameter.grad.reshape(theirs.shape), theirs) < FP32_GRADIENT, name
        checked += 1
    assert checked == sum(name.startswith("A.grad.") for name in tensors)


@pytest.mark.parametrize("case", CASES)
def test_prefill_then_token_by_token_decode_matches_the_published_implementation(golden, case) -> None:
    config, tensors = read_case(golden, case, "auto")
    layer = build(config, tensors).eval()
    with torch.no_grad():
        out, _, state = layer(tensors["B.x"][:, :200])
        assert relative_error(out, tensors["B.out_prefill"]) < FP32_OUTPUT
        for name, ours in zip(("W1", "b1", "W2", "b2"), state.weights.tensors, strict=False):
            assert relative_error(ours, tensors[f"B.after200.{name}_states"]) < FP32_OUTPUT, name
        for name, ours in zip(("W1", "b1", "W2", "b2"), state.sums.tensors, strict=False):
            assert relative_error(ours, tensors[f"B.after200.{name}_grad"]) < FP32_OUTPUT, name
        for ours, theirs in {"pre_conv": "pre_conv", "conv_q": "ttt_conv_q", "conv_k": "ttt_conv_k"}.items():
            if ours in state.conv:
                # The reference keeps the last 4 inputs; a kernel of 4 reads 3 of them.
                history = tensors[f"B.after200.conv.{theirs}"][:, :, 1:]
                assert relative_error(state.conv[ours], history) < FP32_OUTPUT
        steps = []
        for t in range(200, 240):
            out, _, state = layer(tensors["B.x"][:, t : t + 1], state)
            steps.append(out)
    assert relative_error(torch.cat(steps, dim=1), tensors["B.out_decode"]) < FP32_OUTPUT
    for name, ours in zip(("W1", "b1", "W2", "b2"), state.weights.tensors, strict=False):
        assert relative_error(ours, tensors[f"B.after240.{name}_states"]) < FP32_OUTPUT, name
    assert all(not tensor.any() for tensor in state.sums.tensors)


@pytest.mark.parametrize("case", CASES)
def test_float64_matches_the_reference_run_in_float64(golden, case) -> None:
    config, tensors = read_case(golden, case, "chunked")
    out, _, _ = build(config, tensors).double()(tensors["A.x"][:1].double())
    assert out.dtype == torch.float64
    assert relative_error(out, tensors["A.out_fp64"]) < FP64


def test_weights_that_do_not_fit_are_refused_by_name(golden) -> None:
    config, tensors = read_case(golden, "lm_mlp_mamba", "auto")
    weights = {name.removeprefix("param."): value for name, value in tensors.items() if name.startswith("param.")}
    incomplete = {name: value for name, value in weights.items() if name != "conv_q.bias"} | {"surplus": weights["W1"]}
    with pytest.raises(ValueError, match=r"missing conv_q\.bias; unexpected surplus"):
        TTTLayer.from_ttt_lm(incomplete, config)
    with pytest.raises(ValueError, match="W1 has shape"):
        TTTLayer.from_ttt_lm(weights | {"W1": weights["W1"][:, :8]}, config)
