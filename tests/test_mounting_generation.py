"""generate() on mounted models: everything it can do gives what an uncached, unpadded, unbatched run gives."""

from __future__ import annotations

import pytest
import torch
from mounting_models import FAMILIES, tiny_model, tiny_ttt
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, StaticCache

from backbones.mounting import MountedCache, gates, model_cache, mount

# (how TTT is mounted, window, sinks): TTT over full attention, TTT over windows, TTT beside windows, windows alone.
ARRANGEMENTS = {
    "ttt+full": {"layers": [2, 3], "mode": "replace"},
    "ttt+window": {"layers": [0, 3], "mode": "replace", "window": 5, "sinks": 2},
    "gated": {"layers": [1, 2], "mode": "gated"},
    "gated+window": {"layers": [1, 2], "mode": "gated", "window": {0: 3, 1: 6}, "sinks": 2},
    "window": {"layers": [], "window": 4, "sinks": 3},
}


def mounted(family: str = "llama", arrangement: str = "ttt+window", **overrides: object) -> PreTrainedModel:
    model = tiny_model(family, **overrides)
    mount(model, config=tiny_ttt(family), **ARRANGEMENTS[arrangement])  # type: ignore[arg-type]
    for alpha in gates(model).values():
        alpha.data.fill_(0.7)
    return model


def prompt(rows: int = 2, tokens: int = 11, seed: int = 1) -> Tensor:
    return torch.randint(1, 97, (rows, tokens), generator=torch.Generator().manual_seed(seed))


def uncached_greedy(model: PreTrainedModel, ids: Tensor, new_tokens: int) -> Tensor:
    """The definition: the whole sequence anew for every token."""
    for _ in range(new_tokens):
        ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    return ids


@pytest.mark.parametrize(
    ("family", "arrangement"),
    [(family, "ttt+window") for family in FAMILIES]
    + [("llama", arrangement) for arrangement in ARRANGEMENTS if arrangement != "ttt+window"],
)
def test_cached_greedy_tokens_are_the_uncached_ones(family: str, arrangement: str) -> None:
    model = mounted(family, arrangement)
    ids = prompt()
    expected = uncached_greedy(model, ids, 10)
    assert torch.equal(model.generate(ids, max_new_tokens=10, do_sample=False), expected)
    assert torch.equal(model.generate(ids, max_new_tokens=10, do_sample=False, use_cache=False), expected)
    chunked = model.generate(ids, max_new_tokens=10, do_sample=False, prefill_chunk_size=3)
    assert torch.equal(chunked, expected)
    from_embeddings = model.generate(
        inputs_embeds=model.get_input_embeddings()(ids), max_new_tokens=10, do_sample=False
    )
    assert torch.equal(from_embeddings, expected[:, 11:])


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_each_row_of_a_left_padded_batch_equals_the_row_alone(arrangement: str) -> None:
    model = mounted("llama", arrangement)
    lengths, rows = (11, 4, 7), prompt(3)
    mask = torch.zeros_like(rows)
    for row, length in enumerate(lengths):
        mask[row, 11 - length :] = 1
    for options in ({}, {"prefill_chunk_size": 2}):
        batch = model.generate(rows * mask, attention_mask=mask, max_new_tokens=7, do_sample=False, **options)
        for row, length in enumerate(lengths):
            alone = uncached_greedy(model, rows[row : row + 1, 11 - length :], 7)
            assert torch.equal(batch[row : row + 1, 11 - length :], alone)


def test_padding_on_the_right_and_between_turns_is_a_no_op_too() -> None:
    model = mounted("llama", "ttt+window").double()
    ids = prompt(2, 13)
    mask = torch.ones_like(ids)
    mask[0, [2, 3, 7, 12]] = 0
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    cache, logits = model_cache(model), []
    for start, stop in ((0, 5), (5, 6), (6, 13)):
        logits.append(
            model(
                ids[:, start:stop], attention_mask=mask[:, :stop], position_ids=positions[:, start:stop],
                past_key_values=cache,
            ).logits
        )  # fmt: skip
    found = torch.cat(logits, dim=1)
    for row in range(2):
        real = mask[row].bool()
        alone = model(ids[row : row + 1, real])
        torch.testing.assert_close(found[row : row + 1, real], alone.logits, rtol=1e-5, atol=1e-5)
        ours, theirs = cache[0].select([row]), alone.past_key_values[0]
        for a, b in zip(ours.weights.tensors, theirs.weights.tensors, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
        assert int(cache[0].count[row]) == int(real.sum())


@pytest.mark.parametrize("arrangement", ["ttt+full", "ttt+window", "gated+window"])
def test_beams_are_those_of_an_uncached_beam_search(arrangement: str) -> None:
    model = mounted("llama", arrangement)
    ids = prompt()
    options = {"num_beams": 4, "num_return_sequences": 3, "max_new_tokens": 9, "do_sample": False, "eos_token_id": 5}
    cached = model.generate(ids, **options)
    uncached = model.generate(ids, use_cache=False, **options)
    assert cached.shape[0] == 6
    assert torch.equal(cached, uncached)


def test_sampling_and_returning_several_sequences_are_those_of_an_uncached_run() -> None:
    model = mounted()
    ids = prompt()
    runs = []
    for use_cache in (True, False):
        torch.manual_seed(5)
        runs.append(
            model.generate(
                ids, do_sample=True, temperature=1.5, num_return_sequences=3, max_new_tokens=8, use_cache=use_cache
            )
        )
    assert runs[0].shape == (6, 19)
    assert torch.equal(runs[0], runs[1])
    assert len({tuple(row.tolist()) for row in runs[0]}) > 2


def test_multi_turn_generation() -> None:
    """A second turn on a returned cache gives what the whole conversation in one prompt gives."""
    model = mounted()
    first_turn, second_turn = prompt(1, 9), prompt(1, 6, seed=2)
    first = model.generate(first_turn, max_new_tokens=7, do_sample=False, return_dict_in_generate=True)
    conversation = torch.cat([first.sequences, second_turn], dim=1)
    second = model.generate(
        conversation, past_key_values=first.past_key_values, max_new_tokens=8, do_sample=False,
        return_dict_in_generate=True,
    )  # fmt: skip
    assert torch.equal(second.sequences, uncached_greedy(model, conversation, 8))
    assert isinstance(second.past_key_values, MountedCache)
    assert second.past_key_values[0][0].dtype == torch.float32
    # The last token of a turn has not been through the model when its turn ends.
    assert second.past_key_values.get_seq_length() == conversation.shape[1] + 7


@pytest.mark.parametrize("make", [model_cache, lambda m: DynamicCache(config=m.config), lambda m: DynamicCache()])
def test_an_empty_cache_of_the_callers_is_filled_and_subscriptable(make: object) -> None:
    model = mounted()
    cache = make(model)  # type: ignore[operator]
    out = model(prompt(), past_key_values=cache)
    assert out.past_key_values is cache
    assert cache[3][0].dtype == torch.float32
    keys, values = cache[1]
    assert keys.shape == values.shape == (2, 2, 5, 8)
    assert sorted(cache.states) == [0, 3]
    ids = prompt()
    expected = uncached_greedy(model, ids, 5)
    assert torch.equal(
        model.generate(ids, past_key_values=make(model), max_new_tokens=5, do_sample=False),
        expected,  # type: ignore[operator]
    )


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
@pytest.mark.parametrize("implementation", ["static", "offloaded", "offloaded_static"])
def test_caches_that_cannot_hold_the_state_are_refused_by_name(arrangement: str, implementation: str) -> None:
    model = mounted("llama", arrangement)
    with pytest.raises(ValueError, match=r"no static cache|a mounted model keeps its state in a MountedCache"):
        model.generate(prompt(), max_new_tokens=3, cache_implementation=implementation)


def test_other_ways_to_bring_a_wrong_cache_are_refused() -> None:
    model, plain = mounted(), tiny_model()
    with pytest.raises(ValueError, match="no static cache"):
        StaticCache(config=model.config, max_cache_len=32)
    with pytest.raises(ValueError, match="filled by an unmounted model"):
        model(prompt(), past_key_values=plain(prompt()).past_key_values)
    with pytest.raises(ValueError, match="has 2 layers and the model 4"):
        other = mount(tiny_model(num_hidden_layers=2), layers=[1], config=tiny_ttt())
        model(prompt(), past_key_values=model_cache(other))
    for arrangement in ("ttt+window", "window"):
        with pytest.raises(ValueError, match="without an assistant"):
            mounted("llama", arrangement).generate(prompt(1), max_new_tokens=3, prompt_lookup_num_tokens=2)
    with pytest.raises(ValueError, match="cannot give back tokens"):
        mounted("llama", "gated").generate(prompt(1), max_new_tokens=9, prompt_lookup_num_tokens=2)


def test_a_cache_gives_nothing_back_but_a_snapshot_continues_from_its_place() -> None:
    model = mounted()
    ids = prompt()
    cache = model(ids).past_key_values
    kept = cache.snapshot()
    model(prompt(seed=4), past_key_values=cache)
    with pytest.raises(ValueError, match=r"cannot give back tokens .*snapshot"):
        cache.crop(-2)
    assert kept.get_seq_length() == 11
    continued = model(ids[:, :3], past_key_values=kept).logits
    whole = model(torch.cat([ids, ids[:, :3]], dim=1)).logits[:, 11:]
    torch.testing.assert_close(continued, whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("arrangement", ["ttt+full", "ttt+window", "gated", "gated+window", "window"])
def test_rows_of_a_cache_can_be_reordered_selected_and_repeated(arrangement: str) -> None:
    model = mounted("llama", arrangement)
    ids, more = prompt(3), prompt(3, 4, seed=9)
    order = torch.tensor([2, 0, 0])
    expected = model(torch.cat([ids[order], more], dim=1)).logits[:, 11:]
    for change in ("reorder_cache", "batch_select_indices"):
        cache = model(ids).past_key_values
        getattr(cache, change)(order)
        torch.testing.assert_close(model(more, past_key_values=cache).logits, expected, rtol=1e-4, atol=1e-4)
    cache = model(ids[:1]).past_key_values
    cache.batch_repeat_interleave(3)
    expected = model(torch.cat([ids[:1].expand(3, -1), more], dim=1)).logits[:, 11:]
    torch.testing.assert_close(model(more, past_key_values=cache).logits, expected, rtol=1e-4, atol=1e-4)


def test_a_reset_goes_back_to_the_learned_weights_for_all_rows_or_some() -> None:
    model = mounted()
    ids, more = prompt(), prompt(2, 7, seed=3)
    cache = model(ids).past_key_values
    cache.reset()
    assert cache.get_seq_length() == 0
    assert cache.states == {}
    torch.testing.assert_close(model(more, past_key_values=cache).logits, model(more).logits, rtol=1e-5, atol=1e-5)

    cache = model(ids).past_key_values
    cache.reset(rows=[1])
    learned = model.model.layers[3].self_attn.ttt.inner.W1
    assert torch.equal(cache[3].W1[1], learned)
    assert not torch.equal(cache[3].W1[0], learned)
    found = model(more, past_key_values=cache).logits
    torch.testing.assert_close(found[1], model(more).logits[1], rtol=1e-4, atol=1e-4)
    whole = model(torch.cat([ids, more], dim=1)).logits[0, 11:]
    torch.testing.assert_close(found[0], whole, rtol=1e-4, atol=1e-4)

    with pytest.raises(ValueError, match="no rows to reset"):
        model_cache(model).reset(rows=[0])
    with pytest.raises(ValueError, match="no state yet"):
        model_cache(model)[0]


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_a_cache_that_is_reset_takes_any_number_of_rows(arrangement: str) -> None:
    model = mounted("llama", arrangement)
    cache, more = model(prompt(2)).past_key_values, prompt(3, 7, seed=3)
    cache.reset()
    assert cache.nbytes == 0
    assert torch.equal(model(more, past_key_values=cache).logits, model(more).logits)


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_all_rows_named_one_by_one_begin_anew_whatever_the_layers(arrangement: str) -> None:
    model = mounted("llama", arrangement)
    cache, more = model(prompt(2)).past_key_values, prompt(2, 7, seed=3)
    cache.reset(rows=[1, 0])
    torch.testing.assert_close(model(more, past_key_values=cache).logits, model(more).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_a_reset_that_is_refused_forgets_nothing(family: str) -> None:
    # Layers without a window stand between layers that could forget a row.
    model = tiny_model(family, **({"sliding_window": 6} if family == "mistral" else {}))
    mount(model, layers=[0, 3], window={1: 5}, config=tiny_ttt(family))
    ids, more = prompt(), prompt(2, 5, seed=3)
    expected = model(more, past_key_values=model(ids).past_key_values).logits
    cache = model(ids).past_key_values
    for rows in (torch.tensor([True, False]), [1]):
        with pytest.raises(ValueError, match=r"layers \[2\] are attention without a window and cannot forget single"):
            cache.reset(rows)
    cache.reset([])
    for rows, message in (
        ([-1], r"rows must be whole numbers in 0-1, got \[-1\]"),
        ([0, 2], r"rows must be whole numbers in 0-1, got \[0, 2\]"),
        ([0.5], r"rows must be whole numbers in 0-1, got \[0.5\]"),
        (torch.tensor([True]), r"a row mask must have shape \(2,\), got \(1,\)"),
        (torch.tensor([[True, False]]), r"a row mask must have shape \(2,\), got \(1, 2\)"),
    ):
        with pytest.raises(ValueError, match=message):
            cache.reset(rows)
    assert torch.equal(model(more, past_key_values=cache).logits, expected)


def test_a_decode_step_compiles_without_graph_breaks() -> None:
    model = tiny_model(num_hidden_layers=2)
    mount(model, layers=[0], config=tiny_ttt(), window=5, sinks=2)
    ids = prompt(1, 12)

    def step(token: Tensor, cache: MountedCache) -> Tensor:
        return model(token, past_key_values=cache).logits

    compiled = torch.compile(step, backend="eager", fullgraph=True)
    with torch.no_grad():
        eager_cache, compiled_cache = (model(ids[:, :7]).past_key_values for _ in range(2))
        for t in range(7, 10):
            expected = step(ids[:, t : t + 1], eager_cache)
            torch.testing.assert_close(compiled(ids[:, t : t + 1], compiled_cache), expected)
    torch.testing.assert_close(compiled_cache[0].W1, eager_cache[0].W1)
    assert compiled_cache.get_seq_length() == 10
