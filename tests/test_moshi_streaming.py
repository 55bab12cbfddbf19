"""Mounted Moshi: the stream is the batched call, before, at and after the ring's wrap, row by row."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from moshi_models import CONTEXT, open_gates, relative_difference, small_ttt, streamed, text_codes, text_lm, whole
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from backbones.moshi import StreamingTTT, gates, give_ring_room, mount, set_context
from backbones.moshi.stream_tensors import streaming_states, tensors_of
from ttt_core import TTTConfig, TTTLayer

from moshi.models.lm import LMModel  # isort: skip  (after backbones.moshi, which sets how moshi is imported)

FRAMES = 27  # the ring of 11 wraps twice
TOLERANCE = 1e-5

every_mounting = pytest.mark.parametrize(
    ("inner_model", "mode", "window", "sinks", "kv_repeat"),
    [
        pytest.param("linear", "replace", None, 0, 1, id="linear replaces"),
        pytest.param("mlp", "gated", 7, 0, 1, id="mlp gated beside a window"),
        pytest.param("mlp", "replace", 7, 3, 1, id="mlp replaces, sinks"),
        pytest.param("linear", "gated", {0: 5, 2: 9}, 2, 3, id="linear gated, sinks of shared heads"),
    ],
)


def mounted_lm(
    inner_model: str, mode: str, window: int | Mapping[int, int] | None, sinks: int, kv_repeat: int = 1
) -> LMModel:
    lm = text_lm(kv_repeat=kv_repeat)
    mount(lm, [1, 2], small_ttt(lm, inner_model, base_lr=0.5), mode, window, sinks)
    open_gates(gates(lm))
    return lm


@every_mounting
def test_the_stream_is_the_batched_call_at_every_position(
    inner_model: str, mode: str, window: object, sinks: int, kv_repeat: int
) -> None:
    lm = mounted_lm(inner_model, mode, window, sinks, kv_repeat)
    codes = text_codes(lm, rows=2, frames=FRAMES)
    assert relative_difference(streamed(lm, codes), whole(lm, codes)) < TOLERANCE


@every_mounting
def test_with_room_in_the_rings_several_tokens_per_call_are_the_batched_call(
    inner_model: str, mode: str, window: object, sinks: int, kv_repeat: int
) -> None:
    lm = give_ring_room(mounted_lm(inner_model, mode, window, sinks, kv_repeat), tokens_per_call=5)
    codes = text_codes(lm, rows=2, frames=FRAMES)
    assert relative_difference(streamed(lm, codes, tokens_per_call=5), whole(lm, codes)) < TOLERANCE


def test_without_room_several_tokens_per_call_lose_keys_past_the_wrap() -> None:
    lm = mounted_lm("linear", "replace", None, 0)
    codes = text_codes(lm, rows=2, frames=FRAMES)
    found, expected = streamed(lm, codes, tokens_per_call=3), whole(lm, codes)
    assert relative_difference(found[:, : CONTEXT - 2], expected[:, : CONTEXT - 2]) < TOLERANCE
    assert relative_difference(found[:, CONTEXT:], expected[:, CONTEXT:]) > 1e-2


def test_rows_reset_at_different_times_start_anew_alone() -> None:
    lm = mounted_lm("mlp", "replace", 7, 3)
    codes = text_codes(lm, rows=3, frames=FRAMES)
    resets = {1: 9, 2: 16}
    outputs = []
    with torch.no_grad(), lm.streaming(3):
        for t in range(FRAMES):
            starting = torch.tensor([resets.get(row) == t for row in range(3)])
            if starting.any():
                lm.reset_streaming(starting)
            outputs.append(lm.forward_text(codes[:, :, t : t + 1])[1][:, 0])
    found = torch.cat(outputs, dim=1)
    for row in range(3):
        start = resets.get(row, 0)
        for segment in (slice(0, start), slice(start, FRAMES)):
            if segment.stop > segment.start:
                expected = whole(lm, codes[row : row + 1, :, segment])
                assert relative_difference(found[row : row + 1, segment], expected) < TOLERANCE


@pytest.mark.parametrize("tokens_per_call", [1, 3])
def test_rows_that_do_not_execute_are_as_if_the_call_had_never_happened(tokens_per_call: int) -> None:
    lm = give_ring_room(mounted_lm("linear", "gated", 7, 2), tokens_per_call)
    calls, rows = 12, 3
    codes = text_codes(lm, rows=rows, frames=calls * tokens_per_call)
    executes = torch.rand(calls, rows, generator=torch.Generator().manual_seed(5)) < 0.7
    executes[:2] = torch.tensor([[True, False, True], [False, True, True]])
    outputs = []
    with torch.no_grad(), lm.streaming(rows):
        for mask, part in zip(executes, codes.split(tokens_per_call, dim=2), strict=True):
            lm.set_exec_mask(mask)
            outputs.append(lm.forward_text(part)[1][:, 0])
    found = torch.cat(outputs, dim=1)
    for row in range(rows):
        kept = executes[:, row].repeat_interleave(tokens_per_call)
        expected = whole(lm, codes[row : row + 1, :, kept])
        assert relative_difference(found[row : row + 1, kept], expected) < TOLERANCE


def test_a_row_that_holds_nan_and_does_not_execute_leaves_every_state_finite() -> None:
    module = StreamingTTT(TTTLayer(TTTConfig(hidden_size=12, num_heads=2, mini_batch_size=3, share_qk=True)))
    x = torch.randn(2, 7, 12)
    broken = x.clone()
    broken[1, 2:4] = torch.nan
    with torch.no_grad(), module.streaming(2):
        for t in range(7):
            module.set_exec_mask(torch.tensor([True, not 2 <= t < 4]))
            step = broken[:, t : t + 1]
            last = module(step, step, step)
    kept = x[1:, [0, 1, 4, 5, 6]]
    expected = module(kept, kept, kept)
    torch.testing.assert_close(last[1], expected[0, -1:], rtol=1e-4, atol=1e-5)


def test_in_double_precision_the_stream_is_the_batched_call_to_ten_digits() -> None:
    # Without the rotary positions and RMS norms of the model, which the package computes in FP32 whatever the dtype.
    lm = text_lm(norm="layer_norm", positional_embedding="none").double()
    mount(lm, [0, 1, 2], small_ttt(lm, "mlp"))
    codes = text_codes(lm, rows=2, frames=FRAMES)
    assert relative_difference(streamed(lm, codes), whole(lm, codes)) < 1e-10


@every_mounting
def test_a_future_token_changes_no_earlier_output(
    inner_model: str, mode: str, window: object, sinks: int, kv_repeat: int
) -> None:
    lm = mounted_lm(inner_model, mode, window, sinks, kv_repeat)
    codes = text_codes(lm, rows=1, frames=FRAMES)
    for place in (6, 22):  # before and after the wrap
        other = codes.clone()
        other[:, 0, place] = (other[:, 0, place] + 1) % lm.text_card
        for run in (whole, streamed):
            before, after = run(lm, codes), run(lm, other)
            assert torch.equal(before[:, :place], after[:, :place])
            assert relative_difference(after[:, place:], before[:, place:]) > 1e-3


def sinks_by_definition(attention: torch.nn.Module, x: Tensor, window: int, sinks: int) -> Tensor:
    """Attention output (T, C) of one row x (T, C), query by query, key by key: rotations and visibility spelled out."""
    heads, dim = attention.num_heads, attention.embed_dim // attention.num_heads
    shared = heads // attention.kv_repeat
    q, k, v = attention.in_projs[0](x).unflatten(1, (-1, dim)).split([heads, shared, shared], dim=1)
    k, v = (part.repeat_interleave(attention.kv_repeat, dim=1) for part in (k, v))
    frequencies = attention.rope.max_period ** (-torch.arange(0, dim, 2) / dim)

    def turned(vector: Tensor, place: int) -> Tensor:
        pairs = torch.view_as_complex(vector.view(heads, dim // 2, 2))
        return torch.view_as_real(pairs * torch.polar(torch.ones(dim // 2), place * frequencies)).flatten(1)

    rows = []
    for t in range(len(x)):
        seen = [(u, t, u) for u in range(max(0, t - window + 1), t + 1)]
        # Re-indexed: the sinks stand right before the window, so the query is at most sinks + window - 1 away from 0.
        seen += [(j, min(t, sinks + window - 1), j) for j in range(sinks) if j <= t - window]
        scores = torch.stack([(turned(q[t], at) * turned(k[u], place)).sum(1) for u, at, place in seen], dim=1)
        weights = (scores / dim**0.5).softmax(dim=1)
        rows.append(torch.einsum("hn,nhd->hd", weights, torch.stack([v[u] for u, _, _ in seen])).flatten())
    return attention.out_projs[0](torch.stack(rows))


@torch.no_grad()
def test_sinks_are_pinned_and_re_indexed_to_stand_before_the_window() -> None:
    lm = mount(text_lm(num_heads=4, kv_repeat=2), [], window=6, sinks=3)
    attention = lm.transformer.layers[1].self_attn
    x = torch.randn(2, 19, 24)
    expected = torch.stack([sinks_by_definition(attention, row, window=6, sinks=3) for row in x])
    assert relative_difference(attention(x, x, x), expected) < TOLERANCE


def test_a_bound_no_stream_reaches_is_full_attention_that_streams() -> None:
    unbounded = text_lm(context=None)
    codes = text_codes(unbounded, rows=1, frames=FRAMES)
    expected = whole(unbounded, codes)
    assert relative_difference(whole(text_lm(), codes), expected) > 1e-3  # the context of 11 does matter
    bounded = set_context(text_lm(), FRAMES)
    assert relative_difference(streamed(bounded, codes), expected) < TOLERANCE
    assert torch.equal(whole(set_context(text_lm(), None), codes), expected)


def test_a_streaming_step_asks_for_no_value_and_moves_no_tensor() -> None:
    # What a CUDA graph needs. A fake tensor has no values: asking for one raises.
    lm = mounted_lm("mlp", "gated", 6, 2)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), lm.streaming(2):
        for _ in range(2):
            lm.set_exec_mask(torch.tensor([True, False]))
            assert lm.forward_text(torch.zeros(2, 1, 1, dtype=torch.long))[1].shape == (2, 1, 1, 29)
        with pytest.raises(DataDependentOutputException):
            lm.transformer._streaming_state.offsets[0].item()
    lm = mounted_lm("mlp", "gated", 6, 2)
    with torch.no_grad(), lm.streaming(2):
        before = addresses(lm)
        for t, frame in enumerate(text_codes(lm, rows=2, frames=9).split(1, dim=2)):
            lm.set_exec_mask(torch.tensor([True, t % 2 == 0]))
            lm.forward_text(frame)
        lm.reset_streaming(torch.tensor([True, False]))
        assert addresses(lm) == before


def addresses(lm: LMModel) -> dict[str, int]:
    return {
        f"{name}.{part}": tensor.data_ptr()
        for name, state in streaming_states(lm).items()
        for part, tensor in tensors_of(state).items()
    }
