"""State and inner parameters stay FP32 whatever is done to the model around them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ttt_core import TTTConfig, TTTLayer, TTTState

CASTS = {
    "to_bfloat16": lambda model: model.to(torch.bfloat16),
    "bfloat16": lambda model: model.bfloat16(),
    "half": lambda model: model.half(),
    "to_device_and_dtype": lambda model: model.to("cpu", torch.bfloat16),
    "twice": lambda model: model.half().to(torch.bfloat16),
}


def make_layer(inner_model: str = "mlp", **options) -> TTTLayer:
    return TTTLayer(TTTConfig(hidden_size=16, num_heads=2, inner_model=inner_model, mini_batch_size=4, **options))


class NarrowMatmuls(TorchFunctionMode):
    """Collects the dtypes that matrix products inside the inner loop see."""

    def __init__(self) -> None:
        super().__init__()
        self.batched_dtypes: set[torch.dtype] = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (torch.Tensor.__matmul__, torch.Tensor.matmul, torch.matmul) and args[0].dim() >= 4:
            self.batched_dtypes |= {tensor.dtype for tensor in args[:2]}
        return func(*args, **(kwargs or {}))


def assert_inner_is_fp32(layer: TTTLayer, state: TTTState) -> None:
    assert all(parameter.dtype == torch.float32 for parameter in layer.inner_parameters())
    tensors = [*state.weights.tensors, *state.sums.tensors, *state.conv.values()]
    assert all(tensor.dtype == torch.float32 for tensor in tensors)


@pytest.mark.parametrize("cast", CASTS)
@pytest.mark.parametrize("inner_model", ["linear", "mlp"])
def test_fp32_maintained_during_forward(inner_model, cast) -> None:
    layer = make_layer(inner_model, pre_conv=True, share_qk=True)
    exact = {name: value.clone() for name, value in layer.inner.state_dict().items()}
    model = CASTS[cast](nn.Sequential(nn.Linear(16, 16), layer))
    assert model[0].weight.dtype in (torch.bfloat16, torch.float16) and layer.wq.weight.dtype == model[0].weight.dtype
    assert all(torch.equal(layer.inner.state_dict()[name], value) for name, value in exact.items()), (
        "rounded on the way"
    )
    x = torch.randn(2, 11, 16, dtype=layer.wq.weight.dtype)
    with NarrowMatmuls() as seen:
        out, _, state = layer(x)
        step, _, state = layer(x[:, :1], state)
    assert out.dtype == step.dtype == x.dtype
    assert seen.batched_dtypes == {torch.float32}
    assert_inner_is_fp32(layer, state)


@pytest.mark.parametrize("tokens", [1, 11])
def test_autocast_does_not_reach_the_inner_loop(tokens) -> None:
    layer = make_layer()
    x = torch.randn(2, tokens, 16)
    with torch.autocast("cpu", torch.bfloat16), NarrowMatmuls() as seen:
        out, _, state = layer(x)
    assert out.dtype == torch.bfloat16, "the projections do run under autocast"
    assert seen.batched_dtypes == {torch.float32}
    assert_inner_is_fp32(layer, state)


def test_a_layer_made_under_a_bfloat16_default_has_fp32_inner_parameters() -> None:
    torch.set_default_dtype(torch.bfloat16)
    try:
        layer = make_layer()
    finally:
        torch.set_default_dtype(torch.float32)
    assert layer.wq.weight.dtype == torch.bfloat16
    _, _, state = layer(torch.randn(1, 5, 16, dtype=torch.bfloat16))
    assert_inner_is_fp32(layer, state)


def test_gradients_survive_a_cast_in_fp32() -> None:
    layer = make_layer()
    layer(torch.randn(1, 9, 16))[0].sum().backward()
    before = layer.inner.W1.grad.clone()
    layer.to(torch.bfloat16)
    assert layer.inner.W1.grad.dtype == torch.float32 and torch.equal(layer.inner.W1.grad, before)


def test_a_loader_that_casts_behind_the_layers_back_is_refused() -> None:
    layer = make_layer()
    x = torch.randn(1, 3, 16)
    narrowed = {f"inner.{name}": value.bfloat16() for name, value in layer.inner.named_parameters()}
    with pytest.raises(ValueError, match="must be FP32"):
        torch.func.functional_call(layer, narrowed, (x,))
    layer.inner.W1.data = layer.inner.W1.data.half()
    with pytest.raises(ValueError, match="must be FP32"):
        layer(x)


def test_a_narrow_model_differs_from_fp32_only_by_its_projections() -> None:
    layer = make_layer()
    narrow = copy.deepcopy(layer).to(torch.bfloat16)
    widened = copy.deepcopy(narrow).float()
    x = torch.randn(1, 13, 16).bfloat16()
    out, _, _ = narrow(x)
    expected, _, _ = widened(x.float())
    assert (out.float() - expected).abs().max() < 0.02 * expected.abs().max()


def test_double_lifts_everything() -> None:
    layer = make_layer().double()
    out, _, state = layer(torch.randn(1, 5, 16, dtype=torch.float64))
    assert out.dtype == state.W1.dtype == layer.inner.W1.dtype == torch.float64


def test_a_decode_step_compiles_without_graph_breaks() -> None:
    layer = make_layer(pre_conv=True).eval()
    x = torch.randn(2, 7, 16)
    with torch.no_grad():
        _, _, state = layer(x[:, :3])
        compiled = torch.compile(layer, fullgraph=True, backend="eager", dynamic=False)
        expected = got = state
        for t in range(3, 7):
            ours, _, got = compiled(x[:, t : t + 1], got)
            theirs, _, expected = layer(x[:, t : t + 1], expected)
            assert torch.allclose(ours, theirs, atol=1e-6)
    assert torch.allclose(got.W1, expected.W1, atol=1e-6) and torch.equal(got.count, expected.count)
