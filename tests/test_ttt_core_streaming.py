"""One function, however it is called: splits, paddings, rows out of step, forms, checkpointing, causality."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ttt_core import TTTConfig, TTTLayer, TTTState
from ttt_core.inner_model import InnerNorm, InnerWeights, gradient_factors, predict

HIDDEN, HEADS, MINI_BATCH = 12, 2, 5
FP64, FP32 = 1e-10, 1e-5
INNER_MODELS = ["linear", "mlp"]
OPTIONS = {
    "plain": {},
    "all": {"share_qk": True, "use_gate": True, "pre_conv": True},
    "global": {"rope_positions": "global", "projection_bias": True},
}


def make_layer(
    inner_model: str, options: str = "plain", backend: str = "auto", dtype=torch.float64, seed=0
) -> TTTLayer:
    torch.manual_seed(seed)
    config = TTTConfig(
        hidden_size=HIDDEN, num_heads=HEADS, inner_model=inner_model, mini_batch_size=MINI_BATCH, base_lr=1.0,
        backend=backend, **OPTIONS[options],
    )  # fmt: skip
    layer = TTTLayer(config).to(dtype)
    with torch.no_grad():  # nothing at a degenerate initial value
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        layer.inner.row_offsets[2] = -5.0
    return layer


def state_tensors(state: TTTState) -> list[torch.Tensor]:
    return [*state.weights.tensors, *state.sums.tensors, *state.conv.values(), state.count]


def assert_close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float) -> None:
    scale = max(theirs.abs().max().item(), 1.0) if theirs.numel() else 1.0
    assert ours.shape == theirs.shape
    assert ours.numel() == 0 or (ours - theirs).abs().max().item() <= tolerance * scale


def assert_same_state(ours: TTTState, theirs: TTTState, tolerance: float) -> None:
    for a, b in zip(state_tensors(ours), state_tensors(theirs), strict=True):
        assert_close(a, b, tolerance)


@st.composite
def splits(draw) -> list[int]:
    return draw(st.lists(st.integers(0, 2 * MINI_BATCH + 3), min_size=1, max_size=6))


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("inner_model", INNER_MODELS)
@given(lengths=splits(), dtype=st.sampled_from([torch.float64, torch.float32]), backward=st.booleans())
@settings(max_examples=15, deadline=None)
def test_any_split_into_calls_gives_the_same_outputs_state_and_gradients(
    inner_model, options, lengths, dtype, backward
):
    layer = make_layer(inner_model, options, dtype=dtype)
    tolerance = FP64 if dtype == torch.float64 else FP32
    total = sum(lengths)
    x = torch.randn(2, total, HIDDEN, dtype=dtype, requires_grad=True)
    whole, _, end = layer(x)
    parts, state = [], None
    for part in x.split(lengths, dim=1):
        out, _, state = layer(part, state)
        parts.append(out)
    joined = torch.cat(parts, dim=1)
    assert_close(joined, whole, tolerance)
    assert_same_state(state, end, tolerance)
    if backward and total:
        upstream = torch.randn_like(whole)
        targets = [x, *layer.parameters()]

        def gradients(out, after):
            loss = (out * upstream).sum() + sum(tensor.square().sum() for tensor in after.weights.tensors)
            return torch.autograd.grad(loss, targets, allow_unused=True)

        for ours, theirs in zip(gradients(joined, state), gradients(whole, end), strict=True):
            assert (ours is None) == (theirs is None)
            if ours is not None:
                assert_close(ours, theirs, 10 * tolerance)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("inner_model", INNER_MODELS)
@given(data=st.data(), dtype=st.sampled_from([torch.float64, torch.float32]))
@settings(max_examples=15, deadline=None)
def test_padding_anywhere_equals_the_real_tokens_alone(inner_model, options, data, dtype) -> None:
    layer = make_layer(inner_model, options, dtype=dtype)
    tolerance = FP64 if dtype == torch.float64 else FP32
    calls = data.draw(st.lists(st.integers(1, 13), min_size=1, max_size=3))
    masks = [torch.tensor(data.draw(st.lists(st.lists(st.booleans(), min_size=n, max_size=n), min_size=3, max_size=3)))
             for n in calls]  # fmt: skip
    state, inputs, outputs = None, [], []
    for mask in masks:
        x = torch.randn(3, mask.shape[1], HIDDEN, dtype=dtype)
        x[~mask] = float("nan")  # a padded position must never be read
        out, _, state = layer(x, state, mask)
        inputs.append(x)
        outputs.append(out)
    for row in range(3):
        real = [x[row][mask[row]] for x, mask in zip(inputs, masks, strict=True)]
        alone = torch.cat(real)[None]
        out, _, end = layer(alone)
        got = torch.cat([o[row][mask[row]] for o, mask in zip(outputs, masks, strict=True)])[None]
        assert_close(got, out, tolerance)
        assert_same_state(state.select([row]), end, tolerance)
    for out, mask in zip(outputs, masks, strict=True):
        assert not out[~mask].any()


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("inner_model", INNER_MODELS)
@pytest.mark.parametrize("tokens", [1, 4, 5, 13])
def test_chunked_equals_the_definition_in_outputs_state_and_gradients(inner_model, options, tokens) -> None:
    x = torch.randn(2, tokens, HIDDEN, dtype=torch.float64, requires_grad=True)
    prefix = torch.randn(2, 3, HIDDEN, dtype=torch.float64)
    mask = torch.rand(2, tokens) < 0.8
    upstream = torch.randn_like(x)
    results = []
    for backend in ("sequential", "chunked"):
        layer = make_layer(inner_model, options, backend)
        out, _, state = layer(x, layer(prefix)[2], mask)
        loss = (out * upstream).sum() + sum(tensor.sum() for tensor in state_tensors(state))
        gradients = torch.autograd.grad(loss, [x, *layer.parameters()])
        results.append([out, *state_tensors(state), *gradients])
    for ours, theirs in zip(*results, strict=True):
        assert_close(ours, theirs, FP64)


@pytest.mark.parametrize("inner_model", INNER_MODELS)
def test_closed_form_gradients_are_autograds(inner_model) -> None:
    weights = InnerWeights.from_tensors([tensor.expand(3, *tensor.shape).detach().clone().requires_grad_()
                                         for tensor in make_layer(inner_model).inner.weights.tensors])  # fmt: skip
    d = HIDDEN // HEADS
    norm = InnerNorm(*(torch.randn(HEADS, 1, d, dtype=torch.float64) for _ in range(2)))
    k, v = (torch.randn(3, HEADS, 1, d, dtype=torch.float64) for _ in range(2))
    loss = 0.5 * (norm(predict(k, weights)) - (v - k)).square().sum()
    factors = gradient_factors(k, v, weights, norm)
    assert_close(factors.losses.sum(), loss, FP64)
    expected = torch.autograd.grad(loss, weights.tensors)
    for index, (inputs, gradients) in enumerate(zip(factors.inputs, factors.output_gradients, strict=True)):
        assert_close(inputs.mT @ gradients, expected[2 * index], FP64)
        assert_close(gradients, expected[2 * index + 1], FP64)


@pytest.mark.parametrize("inner_model", INNER_MODELS)
def test_one_inner_step_is_autograds_gradient_step(inner_model) -> None:
    """The first token's weights are W - c_0 eta dl/dW, with eta and c from the layer's own gate."""
    layer = make_layer(inner_model)
    x = torch.randn(1, 1, HIDDEN, dtype=torch.float64)
    started = InnerWeights.from_tensors(
        [tensor[None].detach().requires_grad_() for tensor in layer.inner.weights.tensors]
    )
    heads = (1, 1, HEADS, HIDDEN // HEADS)
    q, k, v = (projection(x).view(heads).transpose(1, 2) for projection in (layer.wq, layer.wk, layer.wv))
    loss = 0.5 * (layer.inner.norm(predict(k, started)) - (v - k)).square().sum()
    gate = torch.sigmoid(x[0, 0] @ layer.inner.step_size_weight.T + layer.inner.step_size_bias)
    eta = gate.view(1, HEADS, 1, 1) / (HIDDEN // HEADS) * layer.inner.row_scales[0]
    stepped = [w - eta * g for w, g in zip(started.tensors, torch.autograd.grad(loss, started.tensors), strict=True)]
    z = q + layer.inner.norm(predict(q, InnerWeights.from_tensors(stepped)))
    expected = layer.wo(layer.post_norm(z.transpose(1, 2).flatten(2)))
    assert_close(layer(x)[0], expected, FP64)


@pytest.mark.parametrize("backend", ["sequential", "chunked"])
@pytest.mark.parametrize("inner_model", INNER_MODELS)
def test_a_future_token_changes_no_earlier_output(inner_model, backend) -> None:
    layer = make_layer(inner_model, "all", backend)
    tokens = 2 * MINI_BATCH + 2
    x = torch.randn(1, tokens, HIDDEN, dtype=torch.float64)
    before, _, _ = layer(x)
    for t in range(tokens):
        changed = x.clone()
        changed[:, t] += 1.0
        after, _, _ = layer(changed)
        assert torch.equal(after[:, :t], before[:, :t]), f"token {t} changed an output before it"
        assert not torch.equal(after[:, t], before[:, t])


@pytest.mark.parametrize("group", [1, 2, 7])
@pytest.mark.parametrize("inner_model", INNER_MODELS)
def test_checkpointing_changes_neither_outputs_nor_gradients(inner_model, group) -> None:
    plain = make_layer(inner_model, backend="chunked")
    grouped = make_layer(inner_model, backend="chunked")
    grouped.config = replace(grouped.config, checkpoint_group=group)
    x = torch.randn(2, 23, HIDDEN, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(2, 23) < 0.7
    results = []
    for layer in (plain, grouped):
        out, _, state = layer(x, layer.initial_state(2), mask)
        loss = out.square().sum() + state.W1.square().sum()
        results.append([out, *torch.autograd.grad(loss, [x, *layer.parameters()])])
    for ours, theirs in zip(*results, strict=True):
        assert_close(ours, theirs, FP64)


def test_rows_reset_at_different_times_equal_fresh_streams() -> None:
    layer = make_layer("mlp", "all")
    x = torch.randn(3, 27, HIDDEN, dtype=torch.float64)
    _, _, state = layer(x[:, :8])
    _, _, state = layer(x[:, 8:15], state.reset([1]))
    rest, _, state = layer(x[:, 15:], state.reset(torch.tensor([False, False, True])))
    for row, start in ((0, 0), (1, 8), (2, 15)):
        fresh, _, end = layer(x[row : row + 1, start:])
        assert_close(rest[row : row + 1], fresh[:, 15 - start :], FP64)
        assert_same_state(state.select([row]), end, FP64)


def test_truncated_backpropagation_carries_the_state_and_cuts_the_graph() -> None:
    layer = make_layer("mlp")
    x = torch.randn(1, 20, HIDDEN, dtype=torch.float64)
    whole, _, _ = layer(x)
    _, _, state = layer(x[:, :9])
    second, _, after = layer(x[:, 9:], state.detach())
    assert_close(second, whole[:, 9:], FP64)
    assert not state.detach().W1.requires_grad and after.W1.requires_grad
    second.sum().backward()
    assert layer.inner.W1.grad is None, "the learned start lies before the cut"
    layer(x[:, 9:], state.detach().reset())[0].sum().backward()
    assert layer.inner.W1.grad.abs().max() > 0, "a reset row starts from the learned weights again"
