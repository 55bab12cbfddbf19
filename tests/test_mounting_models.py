"""Mounting on every family: what it changes, what it must not change, and what it refuses."""

from __future__ import annotations

import copy

import pytest
import torch
from mounting_models import FAMILIES, tiny_model, tiny_ttt
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM, LlamaModel, PreTrainedModel

import backbones.mounting.decoder as decoder_module
import ttt_core
from backbones.mounting import TransformersHost, gates, model_cache, mount, mounted_decoder, ttt_layers
from ttt_core import TTTLayer
from ttt_core.mounting import MountMode


def prompt(rows: int = 2, tokens: int = 11) -> torch.Tensor:
    return torch.randint(1, 97, (rows, tokens), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_mounting_with_a_closed_gate_leaves_the_backbone_bit_identical(family: str, dtype: torch.dtype) -> None:
    # Mistral's own window is passed several times, so that its sliding cache is part of what must not change.
    overrides = {"sliding_window": 6} if family == "mistral" else {}
    model = tiny_model(family, **overrides).to(dtype)
    ids, mask = prompt(), torch.ones(2, 11, dtype=torch.long)
    mask[1, :4] = 0
    expected_logits = model(ids, attention_mask=mask).logits
    options = {"attention_mask": mask, "max_new_tokens": 9, "return_dict_in_generate": True, "output_logits": True}
    expected = model.generate(ids, do_sample=False, **options)
    mount(model, layers=[1, 3], config=tiny_ttt(family), mode="gated")
    assert torch.equal(model(ids, attention_mask=mask).logits, expected_logits)
    found = model.generate(ids, do_sample=False, **options)
    assert torch.equal(found.sequences, expected.sequences)
    assert all(torch.equal(a, b) for a, b in zip(found.logits, expected.logits, strict=True))
    beams = model.generate(ids, attention_mask=mask, num_beams=3, max_new_tokens=5, do_sample=False)
    for alpha in gates(model).values():
        alpha.data.fill_(0.3)
    assert not torch.equal(model(ids, attention_mask=mask).logits, expected_logits)
    assert beams.shape == (2, 16)


@pytest.mark.parametrize("family", FAMILIES)
def test_replacing_starts_from_the_attentions_projections_with_shared_heads_repeated(family: str) -> None:
    model = tiny_model(family)
    attention = copy.deepcopy(model.model.layers[2].self_attn)
    mount(model, layers=[2], config=tiny_ttt(family))
    ttt = ttt_layers(model)[2]
    hidden = torch.randn(1, 5, 32)
    torch.testing.assert_close(ttt.wq(hidden), attention.q_proj(hidden))
    for ours, theirs in ((ttt.wk, attention.k_proj), (ttt.wv, attention.v_proj)):
        shared = theirs(hidden).unflatten(2, (2, 8))
        # Query heads 0 and 1 read key head 0, query heads 2 and 3 key head 1.
        torch.testing.assert_close(ours(hidden).unflatten(2, (4, 8)), shared[:, :, [0, 0, 1, 1]])
    assert torch.equal(ttt.wo.weight, attention.o_proj.weight)
    untouched = model.model.layers[1].self_attn
    assert type(untouched) is type(attention)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_config_is_derived_from_the_attention_when_none_is_given(family: str) -> None:
    model = mount(tiny_model(family), layers=range(2, 4))
    config = ttt_layers(model)[3].config
    assert (config.hidden_size, config.num_heads, config.resolved_head_dim) == (32, 4, 8)
    assert (config.mini_batch_size, config.inner_model) == (64, "mlp")
    assert config.projection_bias == (family == "qwen2")
    out = model(prompt())
    assert out.past_key_values[3][0].dtype == torch.float32
    assert torch.isfinite(out.logits).all()


def test_a_replaced_layer_is_the_ttt_layer_in_the_decoder_layers_own_arithmetic() -> None:
    model = tiny_model()
    mount(model, layers=[1], config=tiny_ttt())
    out = model(prompt(), output_hidden_states=True)
    layer = model.model.layers[1]
    before, after = out.hidden_states[1], out.hidden_states[2]
    mixed = before + ttt_layers(model)[1](layer.input_layernorm(before))[0]
    expected = mixed + layer.mlp(layer.post_attention_layernorm(mixed))
    torch.testing.assert_close(after, expected)
    assert len(out.hidden_states) == 5


def test_a_bare_decoder_mounts_too_and_the_model_stays_the_object_it_was() -> None:
    model = tiny_model()
    decoder, ids = model.model, prompt()
    assert type(decoder) is LlamaModel
    language_model = mount(copy.deepcopy(model), layers=[3], config=tiny_ttt(), window=4)
    assert mount(decoder, layers=[3], config=tiny_ttt(), window=4) is decoder
    mounted_decoder(language_model).load_state_dict(decoder.state_dict())
    hidden = decoder(ids).last_hidden_state
    torch.testing.assert_close(hidden, mounted_decoder(language_model)(ids).last_hidden_state, rtol=0, atol=0)
    assert isinstance(language_model, LlamaForCausalLM)


def test_two_models_that_share_a_config_object_are_mounted_apart() -> None:
    first = tiny_model()
    second = LlamaForCausalLM(first.config).eval()
    mount(first, layers=[0], config=tiny_ttt())
    assert second.config.model_type == "llama"
    assert torch.isfinite(second(prompt()).logits).all()


def test_ttt_core_finds_this_host_by_its_entry_point() -> None:
    model = ttt_core.mount(tiny_model(), layers=range(2, 4), config=tiny_ttt(), mode="replace")
    assert sorted(ttt_layers(model)) == [2, 3]
    assert TransformersHost().matches(model)
    assert not TransformersHost().matches(nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": [40]}, "backbone 'llama' has no layer 40 to mount on; it has layers 0-3"),
        ({"layers": [-1]}, "backbone 'llama' has no layer -1"),
        ({"layers": [1, 1]}, "once"),
        ({"layers": []}, "nothing to mount"),
        ({"layers": [1], "mode": "beside"}, "mode must be"),
        ({"layers": [1], "sinks": 4}, "needs a window"),
        ({"layers": [1], "window": 0}, "1 or more positions"),
        ({"layers": [1], "window": 4, "sinks": -1}, "sinks must be 0 or more"),
        ({"layers": [1], "window": {1: 4}}, "layer 1 has no attention left"),
        ({"layers": [1], "window": {9: 4}}, "no layer 9"),
        ({"layers": 3}, r"layers must be several whole numbers, such as \[3\] or range\(2, 4\), got 3"),
        ({"layers": "12"}, "layers must be several whole numbers, .* got '12'"),
        ({"layers": [1.0]}, "each of layers must be a whole number, got 1.0"),
        ({"layers": [True]}, "each of layers must be a whole number, got True"),
        ({"layers": [1], "window": 2.5}, "window must be a whole number, got 2.5"),
        ({"layers": [1], "window": {0: "4"}}, "the window of layer 0 must be a whole number, got '4'"),
        ({"layers": [1], "window": 4, "sinks": 1.5}, "sinks must be a whole number, got 1.5"),
        ({"layers": [1], "config": {"hidden_size": 32}}, "config must be a TTTConfig or None, got {'hidden_size': 32}"),
        ({"layers": [1], "config": tiny_ttt(hidden_size=64)}, "hidden_size is 64, the backbone's 32"),
        ({"layers": [1], "config": tiny_ttt(num_heads=2)}, "32 -> 32; the config gives 32 -> 16"),
    ],
)
def test_what_cannot_be_mounted_is_refused_and_the_model_stays_whole(arguments: dict, message: str) -> None:
    model = tiny_model()
    expected = model(prompt()).logits
    with pytest.raises(ValueError, match=message):
        mount(model, **arguments)
    assert type(model) is LlamaForCausalLM
    assert type(model.model) is LlamaModel
    assert torch.equal(model(prompt()).logits, expected)


@pytest.mark.parametrize("mode", ["replace", "gated"])
def test_a_mount_that_runs_out_of_memory_leaves_the_model_whole(mode: MountMode) -> None:
    model = tiny_model()
    expected, names = model(prompt()).logits, list(model.state_dict())
    # More bytes than a 64-bit size can name, so that no machine begins to reserve them.
    with pytest.raises(RuntimeError):
        mount(model, layers=[1, 2], config=tiny_ttt(mini_batch_size=2**62), mode=mode, window=4, sinks=1)
    _assert_unmounted(model, expected, names)


@pytest.mark.parametrize(
    ("mode", "failing"),
    [
        ("replace", "ttt_from_attention"),
        ("replace", "TTTMixer"),
        ("gated", "ttt_from_attention"),
        ("gated", "closed_gate"),
    ],
)
def test_a_mount_that_is_interrupted_leaves_the_model_whole(
    mode: MountMode, failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, built = tiny_model(), getattr(decoder_module, failing)
    expected, names, calls = model(prompt()).logits, list(model.state_dict()), []

    def interrupted_at_the_second(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return built(*arguments)

    monkeypatch.setattr(decoder_module, failing, interrupted_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        mount(model, layers=[1, 2], config=tiny_ttt(), mode=mode, window=4)
    _assert_unmounted(model, expected, names)


def _assert_unmounted(model: PreTrainedModel, logits: torch.Tensor, names: list[str]) -> None:
    assert type(model) is LlamaForCausalLM
    assert type(model.model) is LlamaModel
    assert model.config is model.model.config
    assert model.config.model_type == "llama"
    assert list(model.state_dict()) == names
    assert torch.equal(model(prompt()).logits, logits)


def test_a_model_is_mounted_once_and_only_models_of_the_families_are() -> None:
    model = mount(tiny_model(), layers=[1], config=tiny_ttt())
    with pytest.raises(ValueError, match="mounted already"):
        mount(model, layers=[2], config=tiny_ttt())
    with pytest.raises(ValueError, match="cannot mount on a GPT2LMHeadModel"):
        mount(GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=9)), layers=[0])
    with pytest.raises(ValueError, match="projection_bias=True"):
        mount(tiny_model("qwen2"), layers=[0], config=tiny_ttt("llama"))
    with pytest.raises(ValueError, match="is not mounted"):
        model_cache(tiny_model())
    with pytest.raises(ValueError, match="output projection has a bias"):
        mount(tiny_model(attention_bias=True), layers=[0])


def test_sinks_are_refused_where_rotary_frequencies_depend_on_the_calls_length() -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    with pytest.raises(ValueError, match="sinks=0"):
        mount(tiny_model(rope_parameters=rope), layers=(), window=4, sinks=1)


@pytest.mark.parametrize("mode", ["replace", "gated"])
def test_what_is_mounted_trains_or_evaluates_as_the_attention_did(mode: MountMode) -> None:
    for is_training in (True, False):
        model = mount(tiny_model().train(is_training), layers=[1], config=tiny_ttt(), mode=mode, window=4)
        assert {module.training for module in model.modules()} == {is_training}


def test_attention_weights_are_refused_where_a_layer_has_none() -> None:
    eager = {"attn_implementation": "eager"}
    gated = mount(tiny_model(**eager), layers=[1], config=tiny_ttt(), mode="gated")
    assert [tuple(weights.shape) for weights in gated(prompt(), output_attentions=True).attentions] == [
        (2, 4, 11, 11)
    ] * 4
    for options in ({"layers": [1, 2]}, {"layers": [], "window": {1: 4, 2: 4}}):
        model = mount(tiny_model(**eager), config=tiny_ttt(), **options)  # type: ignore[arg-type]
        assert model(prompt(), output_attentions=False).attentions is None
        with pytest.raises(ValueError, match=r"layers \[1, 2\] are TTT or windowed and have no attention weights"):
            model(prompt(), output_attentions=True)
        with pytest.raises(ValueError, match="no attention weights"):
            model.generate(prompt(), max_new_tokens=2, output_attentions=True, return_dict_in_generate=True)
        model.config.output_attentions = True
        with pytest.raises(ValueError, match="no attention weights"):
            model(prompt())


def _cast_by_to(model: PreTrainedModel) -> PreTrainedModel:
    return model.to(torch.bfloat16)


def _cast_by_half(model: PreTrainedModel) -> PreTrainedModel:
    return model.half()


def _cast_child_by_child(model: PreTrainedModel) -> PreTrainedModel:
    for child in model.children():
        child.bfloat16()
    return model


@pytest.mark.parametrize("cast", [_cast_by_to, _cast_by_half, _cast_child_by_child])
@pytest.mark.parametrize("mode", ["replace", "gated"])
def test_casts_of_the_model_leave_states_and_inner_parameters_fp32(cast: object, mode: str) -> None:
    model = mount(tiny_model(initializer_range=0.05), layers=[1, 2], config=tiny_ttt(), mode=mode, window=5, sinks=1)
    cast(model)  # type: ignore[operator]
    ids = prompt()
    out = model(ids)
    again = model(ids[:, :3], past_key_values=out.past_key_values)
    assert again.logits.dtype in (torch.bfloat16, torch.float16)
    assert torch.isfinite(again.logits).all()
    for index, layer in ttt_layers(model).items():
        assert {p.dtype for p in layer.inner_parameters()} == {torch.float32}
        assert layer.wq.weight.dtype == again.logits.dtype
        state = again.past_key_values[index]
        assert {t.dtype for t in (*state.weights.tensors, *state.sums.tensors)} == {torch.float32}
    generated = model.generate(ids, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
    assert generated.past_key_values[2][0].dtype == torch.float32


def test_autocast_leaves_states_fp32() -> None:
    model = mount(tiny_model(), layers=[1], config=tiny_ttt())
    with torch.autocast("cpu", torch.bfloat16):
        out = model(prompt())
    assert out.logits.dtype == torch.bfloat16
    assert all(t.dtype == torch.float32 for t in out.past_key_values[1].weights.tensors)


def test_the_inner_step_size_of_a_call_reaches_the_layers() -> None:
    model = mount(tiny_model(), layers=[1], config=tiny_ttt())
    ids = prompt()
    still = model(ids, ttt_base_lr=0.0).past_key_values[1]
    learned: TTTLayer = ttt_layers(model)[1]
    assert torch.equal(still.W1[0], learned.inner.W1)
    assert not torch.equal(model(ids).past_key_values[1].W1[0], learned.inner.W1)
    # Also with a loss: transformers hands the same keywords to the loss function.
    assert torch.isfinite(model(ids, labels=ids, ttt_base_lr=0.01).loss)


def test_masks_that_hide_the_padding_are_refused() -> None:
    model = mount(tiny_model(), layers=[1], config=tiny_ttt())
    ids = prompt()
    with pytest.raises(ValueError, match="2-D padding mask"):
        model(ids, attention_mask=torch.ones(2, 1, 11, 11, dtype=torch.bool))
    cache = model(ids).past_key_values
    with pytest.raises(ValueError, match="expected 14: 11 already in the cache and 3"):
        model(ids[:, :3], attention_mask=torch.ones(2, 12), past_key_values=cache)
