"""Windowed attention with pinned sinks, against its definition written with a T x T mask."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mounting_models import tiny_model
from torch import Tensor
from transformers import LlamaConfig, MistralConfig, MistralForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from backbones.mounting import model_cache, mount
from backbones.mounting import window as window_module
from backbones.mounting.window import WindowMemory, windowed_attention

HEADS, KV_HEADS, DIM = 4, 2, 6
LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def _blocks_smaller_than_the_tests_sequences() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(window_module, "SMALLEST_BLOCK", 2)
        yield


def rotary_embedding(rope: dict | None = None) -> LlamaRotaryEmbedding:
    config = LlamaConfig(
        hidden_size=HEADS * DIM,
        num_attention_heads=HEADS,
        head_dim=DIM,
        rope_parameters=rope,
        max_position_embeddings=64,
    )
    return LlamaRotaryEmbedding(config)


def turn(x: Tensor, position: int, inv_freq: Tensor) -> Tensor:
    """Rotary position on one vector (d,), from the rotation's own formula."""
    half = x.shape[0] // 2
    angle = (position * inv_freq.double()).to(x)
    a, b = x[:half], x[half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()])


def defined_attention(q: Tensor, k: Tensor, v: Tensor, window: int, sinks: int, inv_freq: Tensor) -> Tensor:
    """One row, one query at a time: StreamingLLM's cache, its entries numbered by their place in it."""
    heads, tokens, dim = q.shape
    out = torch.zeros(heads, tokens, v.shape[2], dtype=q.dtype)
    for t in range(tokens):
        kept = [u for u in range(t + 1) if u < sinks or u > t - window]
        for head in range(heads):
            key_head = head // (heads // k.shape[0])
            query = turn(q[head, t], len(kept) - 1, inv_freq)
            keys = torch.stack([turn(k[key_head, u], place, inv_freq) for place, u in enumerate(kept)])
            weights = torch.softmax(keys @ query * dim**-0.5, dim=0)
            out[head, t] = weights @ v[key_head, kept]
    return out


def attend(
    q: Tensor, k: Tensor, v: Tensor, rotary: LlamaRotaryEmbedding, window: int, sinks: int,
    real: Tensor | None = None, memory: WindowMemory | None = None, start: int = 0,
) -> tuple[Tensor, WindowMemory]:  # fmt: skip
    positions = start + torch.arange(q.shape[2])[None]
    if real is not None:
        positions = start + (real.long().cumsum(1) - 1).clamp_min(0)
    return windowed_attention(
        q, k, v, rotary(v, positions), rotary, memory, window, sinks, real, scaling=q.shape[3] ** -0.5
    )


def random_qkv(batch: int, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    shape = (batch, HEADS, tokens, DIM), (batch, KV_HEADS, tokens, DIM), (batch, KV_HEADS, tokens, DIM)
    return tuple(torch.randn(*each, dtype=torch.float64) for each in shape)  # type: ignore[return-value]


@pytest.mark.parametrize("tokens", [1, 7, 23])
@pytest.mark.parametrize(("window", "sinks"), [(5, 0), (5, 4), (1, 2), (3, 1), (40, 4)])
@pytest.mark.parametrize("rope", [None, LLAMA3_ROPE], ids=["default", "llama3"])
def test_a_query_sees_its_window_and_the_sinks_right_before_it(
    tokens: int, window: int, sinks: int, rope: dict | None
) -> None:
    q, k, v = random_qkv(2, tokens)
    rotary = rotary_embedding(rope)
    out, memory = attend(q, k, v, rotary, window, sinks)
    for row in range(2):
        torch.testing.assert_close(
            out[row], defined_attention(q[row], k[row], v[row], window, sinks, rotary.inv_freq), rtol=1e-6, atol=1e-6
        )
    assert memory.keys.shape == (2, KV_HEADS, window, DIM)
    assert memory.sink_keys.shape == (2, KV_HEADS, sinks, DIM)
    assert memory.count.tolist() == [tokens, tokens]


def test_blocks_of_the_size_used_outside_tests_are_right_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window_module, "SMALLEST_BLOCK", 32)
    q, k, v = random_qkv(1, 83)
    rotary = rotary_embedding()
    for window, sinks in ((5, 2), (70, 3)):
        out, _ = attend(q, k, v, rotary, window, sinks)
        expected = defined_attention(q[0], k[0], v[0], window, sinks, rotary.inv_freq)
        torch.testing.assert_close(out[0], expected, rtol=1e-6, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6), window=st.integers(1, 8), sinks=st.integers(0, 5),
    seed=st.integers(0, 10_000), padded=st.booleans(),
)  # fmt: skip
def test_any_split_and_any_padding_give_each_row_its_own_attention(
    lengths: list[int], window: int, sinks: int, seed: int, padded: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    tokens = sum(lengths)
    real = torch.rand(2, tokens, generator=generator) > 0.4 if padded else torch.ones(2, tokens, dtype=torch.bool)
    q, k, v = (torch.randn(2, heads, tokens, DIM, generator=generator, dtype=torch.float64) for heads in (HEADS, 2, 2))
    rotary = rotary_embedding()
    # Rotary positions count each row's real tokens, as generate() gives them.
    positions = (real.long().cumsum(1) - 1).clamp_min(0)
    memory, outputs, start = None, [], 0
    for length in lengths:
        part = slice(start, start + length)
        out, memory = windowed_attention(
            q[:, :, part], k[:, :, part], v[:, :, part], rotary(v, positions[:, part]), rotary, memory, window, sinks,
            real[:, part] if padded else None, scaling=DIM**-0.5,
        )  # fmt: skip
        outputs.append(out)
        start += length
    out = torch.cat(outputs, dim=2)
    for row in range(2):
        chosen = real[row]
        expected = defined_attention(
            q[row][:, chosen], k[row][:, chosen], v[row][:, chosen], window, sinks, rotary.inv_freq
        )
        torch.testing.assert_close(out[row][:, chosen], expected, rtol=1e-6, atol=1e-6)
        assert not out[row][:, ~chosen].any()
    assert memory is not None
    assert memory.count.tolist() == real.sum(1).tolist()


def test_gradients_are_those_of_the_definition_also_across_calls() -> None:
    q, k, v = (tensor.requires_grad_() for tensor in random_qkv(1, 11))
    rotary = rotary_embedding()
    first, memory = attend(q[:, :, :6], k[:, :, :6], v[:, :, :6], rotary, 4, 2)
    second, _ = attend(q[:, :, 6:], k[:, :, 6:], v[:, :, 6:], rotary, 4, 2, memory=memory, start=6)
    out = torch.cat([first, second], dim=2)
    weight = torch.randn_like(out)
    found = torch.autograd.grad((out * weight).sum(), (q, k, v))
    expected_out = defined_attention(q[0], k[0], v[0], 4, 2, rotary.inv_freq)
    expected = torch.autograd.grad((expected_out * weight[0]).sum(), (q, k, v))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("window", [1, 3, 8, 64])
def test_without_sinks_it_is_transformers_own_sliding_window(window: int) -> None:
    torch.manual_seed(3)
    sizes = {
        "vocab_size": 61, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6,
    }  # fmt: skip
    theirs = MistralForCausalLM(MistralConfig(**sizes, sliding_window=window)).eval().double()
    ours = MistralForCausalLM(MistralConfig(**sizes, sliding_window=None)).eval().double()
    ours.load_state_dict(theirs.state_dict())
    mount(ours, layers=(), window=window)
    ids = torch.randint(0, 61, (2, 29))
    torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, rtol=1e-6, atol=1e-8)


def test_a_long_prompt_never_makes_a_tensor_of_tokens_squared() -> None:
    tokens, window = 8192, 64
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for tensor in torch.utils._pytree.tree_leaves(out):
                if isinstance(tensor, Tensor):
                    largest = max(largest, tensor.untyped_storage().nbytes())
            return out

    model = tiny_model("llama", num_hidden_layers=2)
    mount(model, layers=(), window=window, sinks=4)
    ids = torch.randint(1, 97, (1, tokens))
    mask = torch.ones_like(ids)
    mask[:, :3] = 0
    with torch.no_grad(), Watch():
        model.model(ids, attention_mask=mask, past_key_values=model_cache(model))
    # Scores and masks take tokens x 2 windows; the largest is heads x that in FP32. One byte per T x T entry is 64 MB.
    assert largest <= 4 * 4 * tokens * 2 * (window + 4)
    assert largest < tokens * tokens // 2


def test_the_memory_of_a_window_stays_the_same_size_for_ever() -> None:
    model = tiny_model("llama")
    mount(model, layers=(), window=9, sinks=3)
    cache, sizes = model_cache(model), set()
    with torch.no_grad():
        for chunk in (1, 30, 2, 1, 17, 1, 1):
            model(torch.randint(1, 97, (2, chunk)), past_key_values=cache)
            storages = sum(t.untyped_storage().nbytes() for t in cache.layers[0].memory.tensors.values())
            sizes.add((cache.nbytes, storages))
    assert len(sizes) == 1
    held = 2 * 4 * (2 * 2 * (9 + 3) * 8 * 4 + 8)  # rows, layers, (K and V, heads, positions, head_dim, bytes), count
    assert sizes == {(held, held // 4)}
    assert cache.get_seq_length() == 53
    assert cache.get_mask_sizes(5, 0) == (58, 0)
