"""TTTState as an object: format, persistence, rows, files, and what bad input is told."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ttt_core import TTTConfig, TTTLayer, TTTState


def make_layer(inner_model: str = "mlp", **options) -> TTTLayer:
    return TTTLayer(TTTConfig(hidden_size=16, num_heads=2, inner_model=inner_model, mini_batch_size=4, **options))


@pytest.mark.parametrize("inner_model", ["linear", "mlp"])
def test_state_return_format(inner_model) -> None:
    layer = make_layer(inner_model)
    result = layer(torch.randn(3, 6, 16))
    assert isinstance(result, tuple) and len(result) == 3 and result[1] is None
    out, _, state = result
    assert out.shape == (3, 6, 16) and isinstance(state, TTTState)
    assert state[0] is state.W1 and state[1] is state.b1
    width = 32 if inner_model == "mlp" else 8
    assert state.W1.shape == (3, 2, 8, width) and state.b1.shape == (3, 2, 1, width)
    if inner_model == "mlp":
        assert state[2] is state.W2 and state[3] is state.b2
        assert state.W2.shape == (3, 2, 32, 8) and state.b2.shape == (3, 2, 1, 8)
    else:
        assert state.W2 is None and state.b2 is None
    assert state[0].dtype == torch.float32
    assert state.count.tolist() == [6, 6, 6] and state.open_tokens.tolist() == [2, 2, 2]


def test_state_persistence_across_batches() -> None:
    layer = make_layer()
    batches = torch.randn(4, 2, 5, 16)
    state, outputs = None, []
    for batch in batches:
        out, _, state = layer(batch, state)
        outputs.append(out)
    whole, _, end = layer(torch.cat(list(batches), dim=1))
    assert torch.allclose(torch.cat(outputs, dim=1), whole, atol=1e-5)
    assert torch.allclose(state.W1, end.W1, atol=1e-5) and torch.equal(state.count, end.count)
    assert not torch.allclose(state.W1, layer.initial_state(2).W1), "the state must have learned something"


@pytest.mark.parametrize("tokens", [1, 3, 4, 5, 63, 64, 65, 100])
def test_auto_padding(tokens) -> None:
    """A call of any length is padded to whole mini-batches inside; nothing unfinished is committed."""
    layer = TTTLayer(TTTConfig(hidden_size=16, num_heads=2, mini_batch_size=64))
    x = torch.randn(2, tokens, 16)
    out, _, state = layer(x)
    assert out.shape == x.shape
    assert state.count.tolist() == [tokens, tokens]
    if tokens < 64:
        assert torch.equal(state.W1, layer.initial_state(2).W1), "an unfinished mini-batch was committed"
    else:
        assert not torch.equal(state.W1, layer.initial_state(2).W1)
    padded = torch.cat([x, torch.randn(2, 17, 16)], dim=1)
    mask = torch.arange(tokens + 17)[None].expand(2, -1) < tokens
    same, _, after = layer(padded, mask=mask)
    assert torch.allclose(same[:, :tokens], out, atol=1e-6) and torch.allclose(after.W1, state.W1, atol=1e-6)


@pytest.mark.parametrize("inner_model", ["linear", "mlp"])
def test_progressive_lengths(inner_model) -> None:
    """1k, 2k, 4k, 8k tokens: finite, gradients included, and each length a prefix of the next."""
    layer = TTTLayer(TTTConfig(hidden_size=16, num_heads=2, inner_model=inner_model, mini_batch_size=64))
    x = torch.randn(1, 8192, 16)
    longest, _, _ = layer(x)
    for tokens in (1024, 2048, 4096, 8192):
        layer.zero_grad()
        out, _, state = layer(x[:, :tokens])
        assert torch.allclose(out, longest[:, :tokens], atol=1e-5)
        out.square().mean().backward()
        assert all(torch.isfinite(parameter.grad).all() for parameter in layer.parameters())
        assert torch.isfinite(state.W1).all() and state.count.item() == tokens


def test_no_call_changes_the_callers_state() -> None:
    layer = make_layer(pre_conv=True)
    _, _, state = layer(torch.randn(2, 3, 16))
    before = state.clone()
    for tokens in (1, 9):
        layer(torch.randn(2, tokens, 16), state)
    state.reset([0]), state.select([1, 1, 0]), state.repeat(2), state.detach()
    for ours, theirs in zip(state._row_tensors(), before._row_tensors(), strict=True):
        assert torch.equal(ours, theirs)


def test_rows_are_selected_repeated_and_reset() -> None:
    layer = make_layer(share_qk=True)
    _, _, state = layer(torch.randn(3, 6, 16))
    picked = state.select([2, 0, 2])
    assert torch.equal(picked.W1, state.W1[[2, 0, 2]]) and torch.equal(
        picked.conv["conv_q"], state.conv["conv_q"][[2, 0, 2]]
    )
    assert torch.equal(state.repeat(2).W1, state.W1.repeat_interleave(2, 0))
    fresh = layer.initial_state(3)
    mixed = state.reset([1])
    assert torch.equal(mixed.W1[1], fresh.W1[1]) and mixed.W1[1].any(), "reset goes to the learned start, not to zeros"
    assert torch.equal(mixed.W1[0], state.W1[0]) and mixed.count.tolist() == [6, 0, 6]
    assert not mixed.sums.W1[1].any() and not mixed.conv["conv_k"][1].any()
    assert state.reset().count.tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match="rows must be in 0-2"):
        state.reset([3])
    with pytest.raises(ValueError, match="1 or more"):
        state.repeat(0)


def test_bytes_are_those_of_the_stored_tensors() -> None:
    _, _, state = make_layer("linear")(torch.randn(3, 6, 16))
    per_row = 2 * 2 * (8 * 8 + 8) * 4 + 8  # weights and sums, two heads, FP32; the count
    assert state.nbytes == 3 * per_row


@pytest.mark.parametrize("inner_model", ["linear", "mlp"])
def test_a_conversation_goes_on_in_another_process(tmp_path, inner_model) -> None:
    layer = make_layer(inner_model, pre_conv=True, share_qk=True)
    x = torch.randn(2, 14, 16)
    _, _, state = layer(x[:, :7])
    expected, _, end = layer(x[:, 7:], state)
    state.save(tmp_path / "state.safetensors")
    torch.save({"layer": layer.state_dict(), "x": x[:, 7:], "expected": expected}, tmp_path / "layer.pt")
    program = f"""
import torch
from ttt_core import TTTConfig, TTTLayer, TTTState
config = TTTConfig(
    hidden_size=16, num_heads=2, inner_model={inner_model!r}, mini_batch_size=4, pre_conv=True, share_qk=True
)
saved = torch.load({str(tmp_path / "layer.pt")!r})
layer = TTTLayer(config)
layer.load_state_dict(saved["layer"])
state = TTTState.load({str(tmp_path / "state.safetensors")!r}, config)
out, _, state = layer(saved["x"], state)
assert torch.allclose(out, saved["expected"], atol=1e-6)
assert torch.equal(state.reset().W1[0], layer.inner.W1)
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    assert end.count.tolist() == [14, 14]


def test_a_state_file_of_another_config_or_no_state_file_is_refused(tmp_path) -> None:
    layer = make_layer()
    _, _, state = layer(torch.randn(1, 3, 16))
    path = tmp_path / "state.safetensors"
    state.save(path)
    assert TTTState.load(path, replace(layer.config, backend="sequential")).count.tolist() == [3]
    with pytest.raises(ValueError, match="mini_batch_size is 4 there and 8 here"):
        TTTState.load(path, replace(layer.config, mini_batch_size=8))
    with pytest.raises(ValueError, match="there is no state file"):
        TTTState.load(tmp_path / "nowhere.safetensors", layer.config)
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file({name: tensor for name, tensor in tensors.items() if name != "count"}, path, metadata)
    with pytest.raises(ValueError, match="count is missing"):
        TTTState.load(path, layer.config)
    save_file(tensors | {"weights.W1": tensors["weights.W1"][..., :3].contiguous()}, path, metadata)
    with pytest.raises(ValueError, match=r"weights\.W1 is \(1, 2, 8, 3\), expected \(1, 2, 8, 32\)"):
        TTTState.load(path, layer.config)
    with pytest.raises(ValueError, match="its folder does not exist"):
        state.save(tmp_path / "nowhere" / "state.safetensors")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="no readable safetensors file"):
        TTTState.load(path, layer.config)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mini_batch_size": 0}, "mini_batch_size must be a whole number of at least 1, got 0"),
        ({"num_heads": 3}, "hidden_size 16 is not a multiple of num_heads 3"),
        ({"head_dim": 5}, "head_dim must be even"),
        ({"inner_model": "rnn"}, "inner_model must be one of linear, mlp; got 'rnn'"),
        ({"base_lr": -0.1}, "base_lr must be 0 or more"),
        ({"backend": "magic"}, "backend must be one of"),
        ({"rope_theta": 0.0}, "rope_theta must be positive"),
        ({"rope_theta": float("inf")}, "rope_theta must be a finite number"),
        ({"base_lr": "1"}, "base_lr must be a finite number"),
        ({"share_qk": "no"}, "share_qk must be True or False"),
    ],
)
def test_a_config_no_layer_can_be_built_from_is_refused(fields, message) -> None:
    with pytest.raises(ValueError, match=message):
        TTTConfig(**({"hidden_size": 16, "num_heads": 2} | fields))


def test_inputs_that_do_not_fit_are_refused() -> None:
    layer = make_layer()
    x = torch.randn(2, 5, 16)
    with pytest.raises(ValueError, match=r"x must have shape \(batch, time, 16\)"):
        layer(torch.randn(2, 5, 15))
    with pytest.raises(ValueError, match="mask must be bool of shape"):
        layer(x, mask=torch.ones(2, 5))
    with pytest.raises(ValueError, match="the state holds 3 rows and x has 2"):
        layer(x, layer.initial_state(3))
    with pytest.raises(ValueError, match="inner_model is 'linear' there and 'mlp' here"):
        layer(x, make_layer("linear").initial_state(2))
    other_size = TTTLayer(replace(layer.config, mini_batch_size=8)).initial_state(2)
    with pytest.raises(ValueError, match="mini_batch_size is 8 there and 4 here"):
        layer(x, other_size)
    with pytest.raises(ValueError, match="cast the layer"):
        make_layer().double()(x.double(), layer.initial_state(2))


def test_an_empty_call_changes_nothing() -> None:
    layer = make_layer()
    _, _, state = layer(torch.randn(2, 5, 16))
    out, _, after = layer(torch.randn(2, 0, 16), state)
    assert out.shape == (2, 0, 16) and torch.equal(after.W1, state.W1)


def test_the_inner_step_size_can_be_warmed_up_per_call() -> None:
    layer = make_layer()
    x = torch.randn(1, 9, 16)
    still, _, state = layer(x, base_lr=0.0)
    assert torch.equal(state.W1, layer.initial_state(1).W1)
    assert torch.equal(layer(x, base_lr=layer.config.resolved_base_lr)[0], layer(x)[0])
    assert not torch.equal(layer(x)[0], still)


def test_inner_losses_are_those_of_the_forward_pass_and_cost_no_gradient() -> None:
    layer = make_layer()
    x = torch.randn(2, 9, 16)
    mask = torch.tensor([[True] * 9, [False] * 4 + [True] * 5])
    losses = layer.inner_loss(x, mask=mask)
    assert losses.shape == (2, 2, 9) and not losses.requires_grad
    assert not losses[1, :, :4].any() and (losses[0] > 0).all()
    layer.config = replace(layer.config, backend="sequential")
    assert torch.allclose(losses, layer.inner_loss(x, mask=mask), atol=1e-5)


def test_auto_says_what_it_picked() -> None:
    layer = make_layer()
    assert layer.picked_backend(1) == "sequential" and layer.picked_backend(2) == "chunked"
    assert make_layer(backend="sequential").picked_backend(100) == "sequential"
