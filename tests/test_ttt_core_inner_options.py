"""Options of the inner optimiser: each against its formula worked by hand, then together under every split and form."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ttt_core import InnerWeights, TTTConfig, TTTLayer, TTTState, commit_sizes

HIDDEN, HEADS, MINI_BATCH = 12, 2, 5
OPTIONS = {
    "decay_to_start": {"inner_decay": 0.2},
    "decay_to_zero": {"inner_decay": 0.2, "inner_decay_toward": "zero"},
    "clip": {"inner_clip_norm": 0.3},
    "momentum": {"inner_momentum": 0.7},
    "renormalise": {"renormalises_inner_weights": True},
    "all": {
        "inner_decay": 0.1, "inner_clip_norm": 0.3, "inner_momentum": 0.7, "renormalises_inner_weights": True
    },
}  # fmt: skip


def make_layer(options: str = "", inner_model: str = "mlp", dtype=torch.float64, **fields) -> TTTLayer:
    torch.manual_seed(0)
    config = TTTConfig(
        hidden_size=HIDDEN, num_heads=HEADS, inner_model=inner_model, mini_batch_size=MINI_BATCH, base_lr=1.0,
        **(OPTIONS[options] if options else {}), **fields,
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
    for a, b in zip(ours._row_tensors(), theirs._row_tensors(), strict=True):
        assert_close(a, b, tolerance)


def norm_of(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors]).norm()


def committed_by_hand(
    before: list[Tensor], plain: list[Tensor], start: list[Tensor], velocity: list[Tensor], config: TTTConfig
) -> tuple[list[Tensor], list[Tensor]]:
    """One head of one row: its weights and velocity after a commit, and nothing vectorised over either."""
    step = [w - p for w, p in zip(before, plain, strict=True)]
    if config.inner_clip_norm is not None and norm_of(step) > config.inner_clip_norm:
        step = [s * config.inner_clip_norm / norm_of(step) for s in step]
    velocity = [config.inner_momentum * v + s for v, s in zip(velocity, step, strict=True)]
    target = [w if config.inner_decay_toward == "initial" else torch.zeros_like(w) for w in start]
    decay = config.inner_decay
    after = [(1 - decay) * w + decay * t - v for w, t, v in zip(before, target, velocity, strict=True)]
    if config.renormalises_inner_weights:
        for first in range(0, len(after), 2):
            scale = norm_of(start[first : first + 2]) / norm_of(after[first : first + 2])
            after[first : first + 2] = [scale * tensor for tensor in after[first : first + 2]]
    return after, velocity


def run_by_hand(layer: TTTLayer, x: Tensor) -> tuple[Tensor, list[list[list[Tensor]]]]:
    """Outputs, and weights [row][head], of the layer without options: every commit redone by hand between two calls."""
    config, rows = layer.config, x.shape[0]
    layer.config = replace(
        config, inner_decay=0.0, inner_clip_norm=None, inner_momentum=0.0, renormalises_inner_weights=False
    )
    start = [[tensor[head] for tensor in layer.inner.weights.tensors] for head in range(HEADS)]
    held = [[start[head] for head in range(HEADS)] for _ in range(rows)]
    velocity = [[[torch.zeros_like(w) for w in start[head]] for head in range(HEADS)] for _ in range(rows)]
    state, outputs = layer.initial_state(rows), []
    for part in x.split(MINI_BATCH, dim=1):
        out, _, after = layer(part, state)
        outputs.append(out)
        if part.shape[1] < MINI_BATCH:
            break
        for row in range(rows):
            for head in range(HEADS):
                plain = [tensor[row, head] for tensor in after.weights.tensors]
                held[row][head], velocity[row][head] = committed_by_hand(
                    held[row][head], plain, start[head], velocity[row][head], config
                )
        tensors = [
            torch.stack([torch.stack([held[row][head][index] for head in range(HEADS)]) for row in range(rows)])
            for index in range(len(start[0]))
        ]
        state = replace(after, weights=InnerWeights.from_tensors(tensors))
    return torch.cat(outputs, dim=1), held


@pytest.mark.parametrize("inner_model", ["linear", "mlp"])
@pytest.mark.parametrize("options", OPTIONS)
def test_an_option_is_its_formula_at_every_commit_in_outputs_state_and_gradients(options, inner_model) -> None:
    x = torch.randn(2, 4 * MINI_BATCH + 3, HIDDEN, dtype=torch.float64, requires_grad=True)
    results = []
    for by_hand in (False, True):
        layer = make_layer(options, inner_model)
        if by_hand:
            out, held = run_by_hand(layer, x)
        else:
            out, _, state = layer(x)
            held = [[[t[row, head] for t in state.weights.tensors] for head in range(HEADS)] for row in range(2)]
        tensors = [out, *(tensor for row in held for head in row for tensor in head)]
        gradients = torch.autograd.grad(sum(t.square().sum() for t in tensors), [x, *layer.parameters()])
        results.append([*tensors, *gradients])
    for ours, theirs in zip(*results, strict=True):
        assert_close(ours, theirs, 1e-10)
    plain = make_layer("", inner_model)(x)[0]
    assert torch.equal(results[0][0][:, :MINI_BATCH], plain[:, :MINI_BATCH]), "options act at the commit, not before"
    assert (results[0][0] - plain)[:, MINI_BATCH:].abs().max() > 1e-3, "the option did nothing"


@pytest.mark.parametrize("inner_model", ["linear", "mlp"])
@pytest.mark.parametrize("options", OPTIONS)
@given(data=st.data(), dtype=st.sampled_from([torch.float64, torch.float32]), backward=st.booleans())
@settings(max_examples=6, deadline=None)
def test_any_split_and_form_gives_the_same_outputs_state_and_gradients(
    options, inner_model, data, dtype, backward
) -> None:
    lengths = data.draw(st.lists(st.integers(0, 2 * MINI_BATCH + 3), min_size=1, max_size=5))
    tolerance = 1e-10 if dtype == torch.float64 else 1e-5
    layer = make_layer(options, inner_model, dtype)
    x = torch.randn(2, sum(lengths), HIDDEN, dtype=dtype, requires_grad=True)
    whole, _, end = layer(x)
    parts, state = [], None
    for part in x.split(lengths, dim=1):
        layer.config = replace(layer.config, backend=data.draw(st.sampled_from(["sequential", "chunked"])))
        out, _, state = layer(part, state)
        parts.append(out)
    joined = torch.cat(parts, dim=1)
    assert_close(joined, whole, tolerance)
    assert_same_state(state, end, tolerance)
    if backward and sum(lengths):
        targets = [x, *layer.parameters()]
        pairs = [
            torch.autograd.grad(
                out.square().sum() + after.W1.square().sum(), targets, allow_unused=True, materialize_grads=True
            )
            for out, after in ((joined, state), (whole, end))
        ]
        for ours, theirs in zip(*pairs, strict=True):
            assert_close(ours, theirs, 10 * tolerance)


@pytest.mark.parametrize("options", OPTIONS)
def test_rows_out_of_step_padding_and_checkpointing_change_nothing(options) -> None:
    layer = make_layer(options)
    x = torch.randn(3, 23, HIDDEN, dtype=torch.float64)
    mask = torch.rand(3, 23) < 0.6
    out, _, state = layer(torch.where(mask[:, :, None], x, float("nan")), mask=mask)
    _, _, late = layer(x, state)
    grouped = make_layer(options, checkpoint_group=2)
    x.requires_grad_()
    for row in range(3):
        alone, _, end = layer(x[row][mask[row]][None])
        assert_close(out[row][mask[row]], alone[0], 1e-10)
        assert_same_state(state.select([row]), end, 1e-10)
        assert_same_state(late.select([row]), layer(x[row : row + 1], end)[2], 1e-10)
    gradients = []
    for each in (layer, grouped):
        loss = each(x, state.detach())[0].square().sum()
        gradients.append(torch.autograd.grad(loss, [x, *each.parameters()], allow_unused=True, materialize_grads=True))
    for ours, theirs in zip(*gradients, strict=True):
        assert_close(ours, theirs, 1e-10)


def test_a_long_stream_stays_as_large_as_each_option_says() -> None:
    x = torch.randn(1, 120 * MINI_BATCH, HIDDEN, dtype=torch.float64)

    def end(**fields) -> tuple[TTTState, InnerWeights]:
        layer = make_layer(inner_model="linear", **fields)
        return layer(x)[2], layer.inner.weights

    free, start = end()
    kept, _ = end(renormalises_inner_weights=True)
    decayed, _ = end(inner_decay=0.3)
    assert free.W1.norm() > 1.5 * start.W1.norm() and decayed.W1.norm() < free.W1.norm()
    for head in range(HEADS):
        wanted = torch.cat([start.W1[head], start.b1[head]]).norm()
        assert_close(torch.cat([kept.W1[0, head], kept.b1[0, head]]).norm(), wanted, 1e-12)
    all_forgotten, _ = end(inner_decay=1.0, inner_decay_toward="zero", inner_clip_norm=1e-9)
    assert all_forgotten.W1.abs().max() < 1e-8


def test_commit_sizes_are_norms_of_the_change_as_a_share_of_the_weights() -> None:
    layer = make_layer(dtype=torch.float32)
    x = torch.randn(2, 3 * MINI_BATCH, HIDDEN)
    states = [layer.initial_state(2)]
    for part in x.split(MINI_BATCH, dim=1):
        states.append(layer(part, states[-1])[2])
    sizes = commit_sizes(states[1], states[2])
    assert sizes.shape == (2, HEADS)
    for row in range(2):
        for head in range(HEADS):
            before, after = ([t[row, head].double() for t in state.weights.tensors] for state in states[1:3])
            change = norm_of([a - b for a, b in zip(after, before, strict=True)])
            assert sizes[row, head].item() == pytest.approx((change / norm_of(before)).item(), rel=1e-4)
    _, _, open_one = layer(x[:, :2], states[1])
    assert not commit_sizes(states[1], open_one).any(), "an open mini-batch has committed nothing"
    clipped = make_layer(dtype=torch.float32, inner_clip_norm=1e-3)
    capped = commit_sizes(clipped.initial_state(2), clipped(x[:, :MINI_BATCH])[2])
    norms = torch.stack([norm_of([t[head] for t in clipped.inner.weights.tensors]) for head in range(HEADS)])
    assert_close(capped, (1e-3 / norms).expand(2, -1), 1e-5)
    with pytest.raises(ValueError, match="of other streams or layers"):
        commit_sizes(states[1], states[2].select([0]))


def test_decay_clipping_and_renormalising_may_be_switched_on_in_mid_stream_but_momentum_not(tmp_path) -> None:
    plain = make_layer()
    x = torch.randn(1, 33, HIDDEN, dtype=torch.float64)
    _, _, state = plain(x[:, :12])
    state.save(tmp_path / "state.safetensors")
    fields = {"inner_decay": 0.2, "inner_clip_norm": 0.5, "renormalises_inner_weights": True}
    forgetting = replace(plain.config, **fields)
    loaded = TTTState.load(tmp_path / "state.safetensors", forgetting)
    plain.config = forgetting
    assert torch.equal(plain(x[:, 12:], state)[0], plain(x[:, 12:], loaded)[0])
    with_momentum = make_layer("momentum")
    with pytest.raises(ValueError, match="carries_velocity is False there and True here"):
        with_momentum(x, state)
    with pytest.raises(ValueError, match="carries_velocity is False there and True here"):
        TTTState.load(tmp_path / "state.safetensors", with_momentum.config)
    _, _, fast = with_momentum(x)
    with pytest.raises(ValueError, match="carries_velocity is True there and False here"):
        plain(x, fast)
    with_momentum.config = replace(with_momentum.config, inner_momentum=0.1)
    assert with_momentum(x, fast)[2].velocity is not None, "how much of the velocity is kept may change"
    assert fast.nbytes == plain.initial_state(1).nbytes * 3 // 2 - 4, "weights, sums and velocity, and one count"


@pytest.mark.parametrize("options", OPTIONS)
def test_a_step_of_nothing_has_finite_gradients(options) -> None:
    layer = make_layer(options)
    x = torch.randn(1, 3 * MINI_BATCH, HIDDEN, dtype=torch.float64)
    out, _, state = layer(x, base_lr=0.0)
    assert_close(state.W1, layer.initial_state(1).W1, 1e-12 if options != "decay_to_zero" else 1.0)
    out.square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"inner_decay": 1.5}, r"inner_decay must be from 0 \(none\) to 1"),
        ({"inner_decay": float("nan")}, "inner_decay must be a finite number"),
        ({"inner_decay_toward": "mean"}, "inner_decay_toward must be one of initial, zero; got 'mean'"),
        ({"inner_clip_norm": 0.0}, "inner_clip_norm must be positive, or None for no limit; got 0.0"),
        ({"inner_momentum": 1.0}, "inner_momentum must be at least 0 and below 1, got 1.0"),
        ({"renormalises_inner_weights": 1}, "renormalises_inner_weights must be True or False, got 1"),
    ],
)
def test_an_option_out_of_range_is_refused(fields, message) -> None:
    with pytest.raises(ValueError, match=message):
        make_layer(**fields)
