"""Precision policies in a layer: what is rounded, when, and that nothing else changes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ttt_core import POLICIES, TTTConfig, TTTLayer, TTTState
from ttt_core.precision import CommitPlace

HIDDEN, HEADS, MINI_BATCH = 12, 2, 5
ROUNDING = ["bf16", "bf16_stochastic", "bf16_compensated", "fp16"]
KEEPS_DOUBLES_APART = [name for name in POLICIES if name != "bf16_compute"]
BYTES = {"fp32": 4, "fp64": 8, "bf16": 2, "bf16_stochastic": 2, "bf16_compensated": 4, "fp16": 2, "bf16_compute": 4}


def make_layer(precision: str, inner_model: str = "mlp", dtype=torch.float64, seed: int = 0, **options) -> TTTLayer:
    torch.manual_seed(seed)
    config = TTTConfig(
        hidden_size=HIDDEN, num_heads=HEADS, inner_model=inner_model, mini_batch_size=MINI_BATCH, base_lr=1.0,
        precision=precision, **options,
    )  # fmt: skip
    layer = TTTLayer(config).to(dtype)
    with torch.no_grad():  # nothing at a degenerate initial value
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        layer.inner.row_offsets[-1] = 0.1  # a negative one could leave nothing to commit
    return layer


def assert_close(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    scale = max(theirs.abs().max().item(), 1.0) if theirs.numel() else 1.0
    assert ours.shape == theirs.shape
    assert ours.numel() == 0 or (ours - theirs).abs().max().item() <= tolerance * scale


def assert_same_state(ours: TTTState, theirs: TTTState, tolerance: float) -> None:
    pairs = [(ours.working_weights, theirs.working_weights), (ours.sums, theirs.sums)]
    for a, b in [(x, y) for left, right in pairs for x, y in zip(left.tensors, right.tensors, strict=True)]:
        assert_close(a, b, tolerance)
    assert torch.equal(ours.count, theirs.count)


def place(number: int, tensor: int = 0, rows: int = 1) -> CommitPlace:
    return CommitPlace(torch.full((rows,), number * MINI_BATCH), 0, MINI_BATCH, tensor)


def run_with_hand_rounding(precision: str, layer: TTTLayer, x: Tensor) -> tuple[Tensor, TTTState]:
    """The unrounded layer, a mini-batch per call, its committed weights rounded by hand between the calls."""
    policy, plain = POLICIES[precision], layer
    plain.config = replace(layer.config, precision="fp32")

    def rounded(tensor: Tensor, number: int, index: int) -> Tensor:
        if precision == "bf16_compensated":
            high = tensor.detach().bfloat16().double()
            kept = high + (tensor.detach() - high).bfloat16().double()
        elif precision == "bf16_stochastic" and number >= 0:
            kept = policy.round(tensor.detach(), place(number, index, rows=x.shape[0]))
        else:
            kept = tensor.detach().to(torch.float16 if precision == "fp16" else torch.bfloat16).double()
        return tensor + (kept - tensor).detach()

    state, outputs = plain.initial_state(x.shape[0]), []
    for number, part in enumerate(x.split(MINI_BATCH, dim=1)):
        weights = [rounded(tensor, number - 1, index) for index, tensor in enumerate(state.weights.tensors)]
        out, _, state = plain(part, replace(state, weights=type(state.weights)(*weights)))
        outputs.append(out)
    return torch.cat(outputs, dim=1), state


@pytest.mark.parametrize("inner_model", ["linear", "mlp"])
@pytest.mark.parametrize("precision", ROUNDING)
def test_a_policy_is_the_plain_recursion_with_weights_rounded_at_every_commit(precision, inner_model) -> None:
    x = torch.randn(2, 4 * MINI_BATCH + 3, HIDDEN, dtype=torch.float64, requires_grad=True)
    results = []
    for by_hand in (False, True):
        layer = make_layer(precision, inner_model)
        out, state = run_with_hand_rounding(precision, layer, x) if by_hand else layer(x)[::2]
        gradients = torch.autograd.grad(out.square().sum(), [x, *layer.parameters()])
        results.append((out, state, gradients))
    (out, state, gradients), (by_hand, hand_state, hand_gradients) = results
    assert_close(out, by_hand, 1e-10)
    assert_same_state(state, hand_state, 1e-10)
    for ours, theirs in zip(gradients, hand_gradients, strict=True):
        assert_close(ours, theirs, 1e-9)
    unrounded, _, _ = make_layer("fp32", inner_model)(x)
    assert (out - unrounded).abs().max() > 1e-7, "nothing was rounded"


@pytest.mark.parametrize("precision", ROUNDING)
def test_a_velocity_is_rounded_as_the_weights_are_by_bits_of_its_own(precision) -> None:
    layer, policy = make_layer(precision, inner_momentum=0.5), POLICIES[precision]
    x = torch.randn(1, 2 * MINI_BATCH, HIDDEN, dtype=torch.float64)
    _, _, first = layer(x[:, :MINI_BATCH])
    _, _, second = layer(x[:, MINI_BATCH:], first)
    plain = replace(layer.config, precision="fp32", inner_momentum=0.0)
    layer.config = plain
    _, _, stepped = layer(x[:, MINI_BATCH:], replace(first, weights=first.working_weights, velocity=None, config=plain))
    for index, (start, end) in enumerate(zip(first.working_weights.tensors, stepped.weights.tensors, strict=True)):
        velocity = start - end + 0.5 * first.working_velocity.tensors[index]
        assert_close(second.working_weights.tensors[index], policy.round(start - velocity, place(1, index)), 1e-10)
        assert_close(second.working_velocity.tensors[index], policy.round(velocity, place(1, 4 + index)), 1e-10)


@pytest.mark.parametrize("precision", KEEPS_DOUBLES_APART)
@given(data=st.data())
@settings(max_examples=8, deadline=None)
def test_any_split_padding_and_form_gives_the_same_outputs_and_state(precision, data) -> None:
    lengths = data.draw(st.lists(st.integers(0, 2 * MINI_BATCH + 3), min_size=1, max_size=5))
    layer = make_layer(precision)
    x = torch.randn(2, sum(lengths), HIDDEN, dtype=torch.float64)
    whole, _, end = layer(x)
    parts, state, late = [], None, None
    for part in x.split(lengths, dim=1):
        layer.config = replace(layer.config, backend=data.draw(st.sampled_from(["sequential", "chunked"])))
        out, _, state = layer(part, state)
        parts.append(out)
        mask = torch.tensor([[False], [True]]).expand(2, part.shape[1])
        _, _, late = layer(part, late, mask)  # row 0 waits while row 1 goes on
    assert_close(torch.cat(parts, dim=1), whole, 1e-10)
    assert_same_state(state, end, 1e-10)
    assert_same_state(late.select([1]), end.select([1]), 1e-10)
    assert_same_state(late.select([0]), layer.initial_state(1), 0.0)


@pytest.mark.parametrize("precision", ["bf16", "bf16_stochastic", "bf16_compensated", "bf16_compute"])
def test_both_forms_agree_in_fp32_to_the_policys_rounding(precision) -> None:
    """An odd rounding may fall the other way where the forms differ in FP32's last bits."""
    x = torch.randn(1, 6 * MINI_BATCH + 2, HIDDEN)
    results = [make_layer(precision, dtype=torch.float32, backend=name)(x) for name in ("sequential", "chunked")]
    last_place = {"bf16_compensated": 2.0**-16}.get(precision, 2.0**-7)
    assert_close(results[0][0], results[1][0], 2 * last_place)
    assert_same_state(results[0][2], results[1][2], 2 * last_place)


def test_fp64_runs_the_inner_loop_in_double_in_an_fp32_layer() -> None:
    """With projections that FP32 computes exactly, the state is that of the layer cast to FP64."""
    layer, double = make_layer("fp64", dtype=torch.float32), make_layer("fp32", dtype=torch.float32)
    with torch.no_grad():
        for each in (layer, double):
            for projection in (each.wq, each.wk, each.wv):
                projection.weight.copy_((projection.weight * 16).round() / 16)
    double.double()
    x = (torch.randn(2, 23, HIDDEN) * 16).round() / 16
    out, _, state = layer(x)
    expected, _, wanted = double(x.double())
    assert out.dtype == torch.float32 and state.W1.dtype == state.sums.W1.dtype == torch.float64
    assert layer.inner.W1.dtype == torch.float32
    assert_same_state(state, wanted, 1e-12)
    assert_close(out.double(), expected, 1e-6)
    step, _, _ = layer(x[:, :1], state)
    assert_close(step.double(), double(x[:, :1].double(), wanted)[0], 1e-6)


def test_steps_too_small_for_bfloat16_vanish_unless_they_are_kept_or_drawn_for() -> None:
    """The suspect of the drift claims: a commit below half a unit in the last place is lost, every time."""
    x = torch.randn(1, 60 * MINI_BATCH, HIDDEN)
    moved = {}
    for precision in ("fp64", "fp32", "bf16", "bf16_stochastic", "bf16_compensated"):
        layer = make_layer(precision, "linear", torch.float32)
        _, _, state = layer(x, base_lr=1e-3)
        moved[precision] = (state.W1.double() - layer.initial_state(1).W1.double()).flatten()
    wanted = moved["fp64"]
    errors = {name: ((change - wanted).norm() / wanted.norm()).item() for name, change in moved.items()}
    assert errors["fp32"] < 1e-4 < errors["bf16_compensated"] < 0.01 < 0.5 < errors["bf16"], errors
    kept = (moved["bf16_stochastic"] @ wanted / wanted.square().sum()).item()
    lost = (moved["bf16"] @ wanted / wanted.square().sum()).item()
    assert 0.6 < kept < 1.4 and lost < 0.5, "stochastic rounding goes the right way on average"


@pytest.mark.parametrize("precision", POLICIES)
def test_bytes_and_views_are_those_of_the_stored_numbers(precision) -> None:
    layer = make_layer(precision, "linear", torch.float32)
    _, _, state = layer(torch.randn(3, 7, HIDDEN))
    d = HIDDEN // HEADS
    numbers = HEADS * (d * d + d)
    assert POLICIES[precision].bytes_per_number == BYTES[precision]
    working = 8 if precision == "fp64" else 4
    assert state.nbytes == 3 * (numbers * (BYTES[precision] + working) + 8) == layer.initial_state(3).nbytes
    assert state[0].dtype == state.b1.dtype == (torch.float64 if precision == "fp64" else torch.float32)
    assert state.W1.shape == (3, HEADS, d, d) and state.W2 is None and len(list(state)) == 4


@pytest.mark.parametrize("precision", [*ROUNDING, "fp64"])
def test_rows_and_files_keep_the_policy(precision, tmp_path) -> None:
    layer = make_layer(precision, dtype=torch.float32, pre_conv=True, inner_momentum=0.5)
    x = torch.randn(3, 17, HIDDEN)
    _, _, state = layer(x[:, :8])
    assert_same_state(state.select([2, 0]).repeat(2), state.select([2, 2, 0, 0]), 0.0)
    mixed = state.reset([1]).detach().clone().to("cpu")
    assert_same_state(mixed.select([1]), layer.initial_state(1), 0.0)
    assert not mixed.working_velocity.W1[1].any() and mixed.working_velocity.W1[0].any()
    state.save(tmp_path / "state.safetensors")
    loaded = TTTState.load(tmp_path / "state.safetensors", layer.config)
    for ours, theirs in zip(loaded._row_tensors(), state._row_tensors(), strict=True):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)
    assert torch.equal(layer(x[:, 8:], loaded)[0], layer(x[:, 8:], state)[0])
    with pytest.raises(ValueError, match=f"precision is '{precision}' there and 'fp32' here"):
        TTTState.load(tmp_path / "state.safetensors", replace(layer.config, precision="fp32"))
    with pytest.raises(ValueError, match=f"precision is '{precision}' there and 'fp32' here"):
        make_layer("fp32", dtype=torch.float32, pre_conv=True, inner_momentum=0.5)(x, state)
    widened = load_file(tmp_path / "state.safetensors")
    widened["weights.b1"] = widened["weights.b1"].to(torch.float32)
    with safe_open(tmp_path / "state.safetensors", framework="pt") as file:
        save_file(widened, tmp_path / "widened.safetensors", file.metadata())
    with pytest.raises(ValueError, match=r"weights\.b1 is torch\.float32, expected torch\."):
        TTTState.load(tmp_path / "widened.safetensors", layer.config)


def test_a_file_of_version_1_is_an_fp32_state(tmp_path) -> None:
    layer = make_layer("fp32", dtype=torch.float32)
    _, _, state = layer(torch.randn(1, 8, HIDDEN))
    path = tmp_path / "state.safetensors"
    state.save(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["version"] == "2" and '"precision": "fp32"' in metadata["config"]
    metadata["version"] = "1"
    metadata["config"] = metadata["config"].replace(', "precision": "fp32", "carries_velocity": false', "")
    assert "precision" not in metadata["config"]
    save_file(load_file(path), path, metadata)
    assert_same_state(TTTState.load(path, layer.config), state, 0.0)
    with pytest.raises(ValueError, match="precision is 'fp32' there and 'bf16' here"):
        TTTState.load(path, replace(layer.config, precision="bf16"))
    save_file(load_file(path), path, metadata | {"version": "3"})
    with pytest.raises(ValueError, match="state version 3; this code reads 1 and 2"):
        TTTState.load(path, layer.config)


class ProductDtypes(TorchFunctionMode):
    """Collects the dtypes of the results of matrix products inside the inner loop."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[torch.dtype] = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func in (Tensor.__matmul__, Tensor.matmul, torch.matmul) and args[0].dim() >= 4:
            self.found.add(result.dtype)
        return result


@pytest.mark.parametrize("tokens", [1, 13])
@pytest.mark.parametrize(
    ("options", "autocast", "products"),
    [
        ({}, True, torch.float32),
        ({"guards_autocast": False}, True, torch.bfloat16),
        ({"guards_autocast": False}, False, torch.float32),
        ({"precision": "bf16_compute"}, True, torch.bfloat16),
        ({"precision": "bf16_compute"}, False, torch.bfloat16),
    ],
)
def test_products_are_narrow_only_where_that_was_asked_for_and_the_state_never_is(
    options, autocast, products, tokens
) -> None:
    layer = make_layer(**({"precision": "fp32", "dtype": torch.float32} | options))
    x = torch.randn(2, tokens, HIDDEN)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), ProductDtypes() as seen:
        out, _, state = layer(x)
        out.float().square().sum().backward()
    assert seen.found == {products}
    tensors = [*state.weights.tensors, *state.sums.tensors]
    assert all(tensor.dtype == torch.float32 for tensor in tensors)
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())
    exact, _, wanted = make_layer("fp32", dtype=torch.float32)(x)
    assert_close(out.float(), exact, 0.1)
    if products == torch.bfloat16:
        assert not torch.equal(state.sums.W1, wanted.sums.W1)


@pytest.mark.parametrize("precision", ["bf16_stochastic", "bf16_compute"])
def test_a_decode_step_compiles_without_graph_breaks(precision) -> None:
    layer = make_layer(precision, dtype=torch.float32, inner_momentum=0.5).eval()
    x = torch.randn(2, 2 * MINI_BATCH, HIDDEN)
    with torch.no_grad():
        _, _, got = layer(x[:, :3])
        expected = got
        compiled = torch.compile(layer, fullgraph=True, backend="eager", dynamic=False)
        for t in range(3, 2 * MINI_BATCH):
            _, _, got = compiled(x[:, t : t + 1], got)
            _, _, expected = layer(x[:, t : t + 1], expected)
    assert_same_state(got, expected, 1e-6)


def test_checkpointing_draws_the_same_bits_again() -> None:
    x = torch.randn(1, 6 * MINI_BATCH, HIDDEN, dtype=torch.float64, requires_grad=True)
    gradients = []
    for group in (0, 2):
        layer = make_layer("bf16_stochastic", checkpoint_group=group)
        gradients.append(torch.autograd.grad(layer(x)[0].square().sum(), [x, *layer.parameters()]))
    for ours, theirs in zip(*gradients, strict=True):
        assert_close(ours, theirs, 1e-10)


def test_gradients_of_a_fresh_stream_are_not_rounded_to_the_stored_dtype() -> None:
    """FP16 would turn gradients this small into zeros."""
    layer = make_layer("fp16", dtype=torch.float32)
    (1e-9 * layer(torch.randn(1, 7, HIDDEN))[0].square().sum()).backward()
    assert layer.inner.W1.grad.dtype == torch.float32 and 0 < layer.inner.W1.grad.abs().max() < 1e-7


def test_what_no_policy_can_do_is_refused() -> None:
    with pytest.raises(ValueError, match=r"precision must be one of fp32, fp64, bf16, .*; got 'int8'"):
        make_layer("int8")
    with pytest.raises(ValueError, match="guards_autocast must be True or False"):
        make_layer("fp32", guards_autocast=1)
    layer = make_layer("bf16_compute")
    with pytest.raises(ValueError, match="'bf16_compute' narrows the products of FP32 numbers"):
        layer(torch.randn(1, 3, HIDDEN, dtype=torch.float64))
    narrow = make_layer("bf16", dtype=torch.float32)
    _, _, state = narrow(torch.randn(1, 3, HIDDEN))
    with pytest.raises(ValueError, match="cast the layer"):
        narrow.double()(torch.randn(1, 3, HIDDEN, dtype=torch.float64), state)
