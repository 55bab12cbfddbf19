"""The form in which every row reads its whole mini-batch: what it computes, that it reads ahead, and that it ends."""

from __future__ import annotations

import dataclasses
import types
import typing

import pytest
import torch
from torch import Tensor

from backbones.moshi import mount as mount_moshi
from backbones.mounting import mount
from experiments.harness.overrides import apply_overrides
from experiments.mini_batch_leak.leaky_form import sees_whole_mini_batches
from experiments.recipes import RECIPES
from tests.moshi_models import small_ttt, streamed, text_codes, text_lm, whole
from tests.mounting_models import tiny_model, tiny_ttt
from ttt_core import TTTConfig, TTTLayer
from ttt_core.rotary import rotary_tables, rotate

HEADS, HEAD_DIM, MINI_BATCH = 2, 6, 5
HIDDEN = HEADS * HEAD_DIM
Weights = list[Tensor]


def make_layer(inner_model: str, **options: object) -> TTTLayer:
    torch.manual_seed(0)
    config = TTTConfig(
        hidden_size=HIDDEN, num_heads=HEADS, inner_model=inner_model, mini_batch_size=MINI_BATCH, base_lr=1.0, **options
    )
    layer = TTTLayer(config).double()
    with torch.no_grad():  # nothing at a degenerate initial value
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return layer


def tokens(count: int, rows: int = 2) -> Tensor:
    return torch.randn(rows, count, HIDDEN, dtype=torch.float64, generator=torch.Generator().manual_seed(7))


def predicted(x: Tensor, weights: Weights) -> Tensor:
    z = x @ weights[0] + weights[1]
    return z if len(weights) == 2 else torch.nn.functional.gelu(z, approximate="tanh") @ weights[2] + weights[3]


def slow_loop(layer: TTTLayer, x: Tensor, call_ends: tuple[int, ...]) -> tuple[Tensor, list[Weights]]:
    """(outputs (T, C), inner weights of every head at the end) of one row x (T, C): head by head and token by token.

    Gradients come from autograd. A row reads the sums of earlier calls in its mini-batch and every token of this one.
    """
    inner, size = layer.inner, layer.config.mini_batch_size
    gate = torch.sigmoid(x @ inner.step_size_weight.mT + inner.step_size_bias)
    positions = torch.arange(len(x)) % size
    rows, ends = [], []
    for head in range(HEADS):
        part = slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)
        tables = rotary_tables(positions, HEAD_DIM, layer.config.rope_theta, x.dtype)
        v = layer.wv(x)[:, part]
        q, k = (rotate(projection(x)[None, None, :, part], tables)[0, 0] for projection in (layer.wq, layer.wk))
        scale, shift = inner.norm.weight[head, 0], inner.norm.bias[head, 0]

        def normed(z: Tensor, scale: Tensor = scale, shift: Tensor = shift) -> Tensor:
            return torch.nn.functional.layer_norm(z, z.shape[-1:], scale, shift, 1e-6)

        weights = [tensor[head] for tensor in inner.weights.tensors]
        outputs: list[Tensor] = []
        for first in range(0, len(x), size):
            step_of: list[Weights] = []
            for t in range(first, min(first + size, len(x))):
                loss = 0.5 * (normed(predicted(k[t : t + 1], weights)) - (v[t] - k[t])).square().sum()
                gradients = torch.autograd.grad(loss, weights, create_graph=True)
                step_of.append([layer.config.resolved_base_lr / HEAD_DIM * gate[t, head] * g for g in gradients])
            for row in range(len(step_of)):
                call_end = next(end for end in call_ends if end > first + row)
                read = step_of[: call_end - first]
                own = [w - inner.row_scales[row] * sum(parts) for w, *parts in zip(weights, *read, strict=True)]
                outputs.append(q[first + row] + normed(predicted(q[first + row : first + row + 1], own))[0])
            if len(step_of) == size:
                weights = [w - inner.row_scales[-1] * sum(parts) for w, *parts in zip(weights, *step_of, strict=True)]
        rows.append(torch.stack(outputs))
        ends.append(weights)
    return layer.wo(layer.post_norm(torch.cat(rows, dim=1))), ends


@pytest.mark.parametrize("inner_model", ["linear", "mlp"])
@pytest.mark.parametrize("call_ends", [(13,), (7, 13)])
def test_it_equals_an_explicit_loop_in_outputs_states_and_gradients(inner_model, call_ends) -> None:
    layer, x = make_layer(inner_model), tokens(13)
    found, state = [], None
    with sees_whole_mini_batches(layer):
        for first, end in zip((0, *call_ends), call_ends, strict=False):
            out, _, state = layer(x[:, first:end], state)
            found.append(out)
    expected, ends = zip(*(slow_loop(layer, row, call_ends) for row in x), strict=True)
    weighing = torch.randn(2, 13, HIDDEN, dtype=torch.float64, generator=torch.Generator().manual_seed(8))
    ours, slow = torch.cat(found, dim=1), torch.stack(expected)
    assert torch.allclose(ours, slow, rtol=0, atol=1e-11)
    for place, kept in enumerate(state.weights.tensors):
        slow_weights = torch.stack([torch.stack([head[place] for head in row]) for row in ends])
        assert torch.allclose(kept, slow_weights, rtol=0, atol=1e-11)
    parameters = list(layer.parameters())
    for mine, theirs in zip(
        torch.autograd.grad((ours * weighing).sum(), parameters),
        torch.autograd.grad((slow * weighing).sum(), parameters),
        strict=True,
    ):
        assert torch.allclose(mine, theirs, rtol=0, atol=1e-9 * max(1.0, theirs.abs().max().item()))


@pytest.mark.parametrize("inner_model", ["linear", "mlp"])
def test_a_later_token_of_the_same_mini_batch_changes_earlier_outputs_and_one_of_the_next_does_not(inner_model) -> None:
    layer, x = make_layer(inner_model), tokens(13)
    with sees_whole_mini_batches(layer):
        before = layer(x)[0]
        for changed_at in (4, 5, 8, 12):
            other = x.clone()
            other[:, changed_at] += 1.0
            moved = (layer(other)[0] - before).abs().amax(dim=(0, 2)) > 1e-9
            first = changed_at - changed_at % MINI_BATCH
            assert not moved[:first].any() and moved[first:].all(), f"token {changed_at}: {moved.tolist()}"


@pytest.mark.parametrize("inner_model", ["linear", "mlp"])
@pytest.mark.parametrize("options", [{}, {"inner_momentum": 0.5, "inner_decay": 0.1}, {"backend": "sequential"}])
def test_what_is_committed_and_summed_is_what_the_causal_form_leaves(inner_model, options) -> None:
    layer, x = make_layer(inner_model, **options), tokens(13)
    causal_out, _, causal = layer(x)
    with sees_whole_mini_batches(layer):
        out, _, leaky = layer(x)
    assert not torch.allclose(out, causal_out, atol=1e-3)
    for kept, expected in zip([*leaky.weights.tensors, *leaky.sums.tensors], [*causal.weights.tensors,
                              *causal.sums.tensors], strict=True):  # fmt: skip
        assert torch.allclose(kept, expected, rtol=0, atol=1e-11)


def test_one_token_a_call_is_the_causal_layer_inside_too() -> None:
    layer, x = make_layer("mlp"), tokens(13)
    expected, state, outputs = layer(x)[0], None, []
    with sees_whole_mini_batches(layer):
        for token in x.split(1, dim=1):
            out, _, state = layer(token, state)
            outputs.append(out)
    assert torch.allclose(torch.cat(outputs, dim=1), expected, rtol=0, atol=1e-11)


def test_padding_neither_leaks_nor_is_leaked_to() -> None:
    layer, x = make_layer("mlp"), tokens(13)
    mask = torch.ones(2, 13, dtype=torch.bool)
    mask[0, 9:] = False
    with sees_whole_mini_batches(layer):
        alone = layer(x[:1, :9])[0]
        beside = layer(x, mask=mask)[0]
    assert torch.allclose(beside[:1, :9], alone, rtol=0, atol=1e-11)


def test_leaving_restores_causality_also_after_an_exception_and_out_of_a_nested_one() -> None:
    layer, x = make_layer("linear"), tokens(13)
    before = layer(x)[0]
    with pytest.raises(RuntimeError, match="in the middle"), sees_whole_mini_batches(layer):
        with sees_whole_mini_batches(layer):
            inner = layer(x)[0]
        assert torch.equal(layer(x)[0], inner) and not torch.equal(inner, before)
        raise RuntimeError("in the middle")
    assert torch.equal(layer(x)[0], before) and type(layer) is TTTLayer


def test_gradients_recomputed_after_leaving_are_those_of_the_form_that_ran() -> None:
    gradients = []
    for group in (0, 1):
        layer = make_layer("mlp", checkpoint_group=group)
        with sees_whole_mini_batches(layer):
            out = layer(tokens(13))[0]
        out.square().sum().backward()
        gradients.append(layer.wk.weight.grad)
    assert torch.allclose(*gradients, rtol=0, atol=1e-10)


def test_it_reaches_every_layer_mounted_in_transformers_and_in_moshi() -> None:
    llama = mount(tiny_model(), layers=(1, 3), config=tiny_ttt())
    lm = text_lm()
    mount_moshi(lm, [1], small_ttt(lm, mini_batch_size=4), "replace")
    ids, codes = torch.arange(3, 16)[None], text_codes(lm, 2, 13)
    with torch.no_grad():
        plain, plain_moshi = llama(ids).logits, whole(lm, codes)
        with sees_whole_mini_batches(llama), sees_whole_mini_batches(lm):
            changed = [type(m) for m in [*llama.modules(), *lm.modules()] if isinstance(m, TTTLayer)]
            leaky, leaky_moshi = llama(ids).logits, whole(lm, codes)
            assert torch.allclose(streamed(lm, codes), plain_moshi, atol=1e-4)
        assert len(changed) == 3 and TTTLayer not in changed
        assert not torch.allclose(leaky, plain, atol=1e-3) and not torch.allclose(leaky_moshi, plain_moshi, atol=1e-3)
        assert torch.equal(llama(ids).logits, plain) and torch.equal(whole(lm, codes), plain_moshi)


def test_a_model_without_ttt_is_refused() -> None:
    with pytest.raises(ValueError, match="LlamaForCausalLM has no TTTLayer to change"), \
            sees_whole_mini_batches(tiny_model()):  # fmt: skip
        pass


def test_no_configuration_of_the_layer_selects_it() -> None:
    """Every value of every field that is one of a few: a later token of the mini-batch changes no earlier output."""
    types_of, tried = typing.get_type_hints(TTTConfig), 0
    for field in dataclasses.fields(TTTConfig):
        literal = typing.get_args(types_of[field.name]) if not isinstance(types_of[field.name], types.UnionType) else ()
        for value in (False, True) if types_of[field.name] is bool else literal:
            layer, x = make_layer(**({"inner_model": "linear"} | {field.name: value})), tokens(13)
            other = x.clone()
            other[:, 8] += 1.0
            if value not in ("bf16_compute",):  # asked for in FP32 layers alone
                assert torch.allclose(layer(x)[0][:, :8], layer(other)[0][:, :8], rtol=0, atol=1e-11), (field, value)
                tried += 1
    assert tried >= 20, "the fields of few values were not found"


@pytest.mark.parametrize("assignment", ["ttt.backend=leaky", "ttt.causal=false", "form=leaky"])
def test_no_setting_on_the_command_line_selects_it(assignment) -> None:
    config = RECIPES["instability"].configure(scale="smoke", seed=0)
    with pytest.raises(ValueError, match=r"has no field|is one of"):
        apply_overrides(config, [f"arms.linear-8.{assignment}"])
