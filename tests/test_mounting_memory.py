"""What a stream costs in memory: described from sizes, counted in a real cache, watched over a decode."""

from __future__ import annotations

import pytest
import torch
from mounting_models import FAMILIES, tiny_model, tiny_ttt
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from backbones.mounting import describe, mount
from backbones.mounting.memory_probe import cache_bytes, decode_memory_curve, probe_model


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "options",
    [
        {"layers": [1, 3]},
        {"layers": [1, 3], "window": 5, "sinks": 2},
        {"layers": [0, 1], "mode": "gated", "window": {1: 5, 2: 7}},
        {"layers": (), "window": 6, "sinks": 1},
        None,
    ],
)
def test_described_bytes_are_the_bytes_a_real_cache_holds(family: str, options: dict | None) -> None:
    overrides = {"sliding_window": 6} if family == "mistral" else {}
    for dtype in (torch.float32, torch.bfloat16):
        model = tiny_model(family, **overrides).to(dtype)
        if options is not None:
            mount(model, config=tiny_ttt(family), **options)
        description = describe(model)
        rows = 3
        for positions in (29, 41):
            cache = model(torch.randint(1, 97, (rows, positions))).past_key_values
            assert cache_bytes(cache) == rows * description.bytes_at(positions)
        growing = [each.layer for each in description.layers if each.bytes_per_position]
        assert description.is_bounded == (not growing)


def test_the_table_says_what_each_layer_is() -> None:
    model = mount(tiny_model(), layers=[3], config=tiny_ttt(inner_model="linear"), window={1: 300}, sinks=4)
    lines = str(describe(model)).splitlines()
    assert lines[0].split() == ["layer", "kind", "bytes/position", "bytes", "fixed", "detail"]
    assert lines[1].split() == ["0", "attention", "128", "0"]
    assert lines[2].split(maxsplit=4) == ["1", "window", "0", "38,920", "300 positions + 4 sinks"]
    # One inner model of 8 x 8 + 8 numbers per head, its gradient sums, and the count.
    assert lines[4].split(maxsplit=4) == ["3", "ttt", "0", str(f"{2 * 4 * 4 * 72 + 8:,}"), "linear, 4 heads of 8"]
    assert lines[5].split(maxsplit=3) == ["total", "256", "41,232", "grows with every position"]
    assert "ttt+window" in str(describe(mount(tiny_model(), layers=[1], mode="gated", window=3)))
    with pytest.raises(ValueError, match="cannot describe a GPT2LMHeadModel"):
        describe(GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=9)))


def test_llama_8b_is_described_without_allocating_it() -> None:
    config = LlamaConfig(
        vocab_size=128_256, hidden_size=4096, intermediate_size=14_336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, max_position_embeddings=131_072,
    )  # fmt: skip
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    full = describe(model)
    # 8 key/value heads of 128, keys and values, 2 bytes: 4 KiB a layer, 128 KiB a position.
    assert full.bytes_per_position == 128 * 1024
    mount(model, layers=range(24, 32), window=2048, sinks=4)
    bounded = describe(model)
    assert bounded.is_bounded
    # Per layer: mlp of 128 -> 512 -> 128 in 32 heads with biases, FP32, its gradient sums, a count.
    state = 2 * 4 * 32 * (2 * 128 * 512 + 512 + 128) + 8
    assert bounded.layers[31].bytes_fixed == state
    assert bounded.bytes_fixed == 8 * state + 24 * (2052 * 4096 + 8)
    assert not any(parameter.device.type != "meta" for parameter in model.parameters())


def test_memory_of_a_decode_is_flat_with_ttt_and_window_and_grows_with_full_attention() -> None:
    bounded = decode_memory_curve(probe_model("ttt-window", window=16), positions=120, every=40)
    assert [point.position for point in bounded] == [1, 40, 80, 120]
    assert len({point.cache_bytes for point in bounded}) == 1
    full = decode_memory_curve(probe_model("full-attention"), positions=120, every=40, chunk=4)
    per_position = describe(probe_model("full-attention")).bytes_per_position
    assert [point.cache_bytes for point in full] == [point.position * per_position for point in full]
    assert all(point.process_bytes > 0 for point in bounded + full)
    with pytest.raises(ValueError, match="every must be 1 or more"):
        decode_memory_curve(probe_model("ttt-window"), positions=3, every=0)
