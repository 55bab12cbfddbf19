"""What goes to disk and comes back: mounted models, the trained difference, conversations."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mounting_models import FAMILIES, tiny_model, tiny_ttt
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from backbones.mounting import (
    gates,
    load_cache,
    load_mounted,
    load_ttt,
    model_cache,
    mount,
    save_cache,
    save_ttt,
    ttt_layers,
    ttt_state_dict,
)


def mounted(family: str = "llama", mode: str = "replace", **options: object) -> PreTrainedModel:
    model = tiny_model(family)
    options = {"layers": [1, 3], "window": 5, "sinks": 2, "config": tiny_ttt(family)} | options
    mount(model, mode=mode, **options)  # type: ignore[arg-type]
    for alpha in gates(model).values():
        alpha.data.normal_()
    for layer in ttt_layers(model).values():
        for parameter in layer.inner_parameters():
            parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def prompt(rows: int = 2, tokens: int = 11) -> Tensor:
    return torch.randint(1, 97, (rows, tokens), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("mode", ["replace", "gated"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_loads_mounted_and_computes_the_same(family: str, mode: str, tmp_path: Path) -> None:
    model, ids = mounted(family, mode), prompt()
    expected = model(ids).logits
    model.save_pretrained(tmp_path)
    for loaded in (load_mounted(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path)):
        assert type(loaded) is type(model)
        assert torch.equal(loaded.eval()(ids).logits, expected)
        assert loaded.config.to_dict().keys() == model.config.to_dict().keys()
    generated = loaded.generate(ids, max_new_tokens=4, do_sample=False, return_dict_in_generate=True)
    assert torch.equal(generated.sequences, model.generate(ids, max_new_tokens=4, do_sample=False))
    assert generated.past_key_values[3][0].dtype == torch.float32


def test_a_saved_model_loads_in_half_precision_with_inner_parameters_fp32_and_unrounded(tmp_path: Path) -> None:
    model = mounted(mode="gated")
    model.save_pretrained(tmp_path)
    for dtype in (torch.bfloat16, torch.float16):
        loaded = load_mounted(tmp_path, dtype=dtype)
        assert loaded.model.layers[1].self_attn.q_proj.weight.dtype == dtype
        for index, layer in ttt_layers(loaded).items():
            assert layer.wq.weight.dtype == dtype
            for ours, theirs in zip(layer.inner_parameters(), ttt_layers(model)[index].inner_parameters(), strict=True):
                assert ours.dtype == torch.float32
                assert torch.equal(ours, theirs)
        assert loaded(prompt()).past_key_values[3][0].dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", ["replace", "gated"])
def test_a_plain_checkpoint_in_a_mounted_config_leaves_no_uninitialised_tensor(
    mode: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = tiny_model()
    plain.save_pretrained(tmp_path / "plain")
    options = {"config": tiny_ttt(use_gate=True, pre_conv=True), "layers": [1, 3]}
    fresh = mount(tiny_model(), mode=mode, **options)  # type: ignore[arg-type]
    fresh.config.save_pretrained(tmp_path / "config")
    config = AutoConfig.from_pretrained(tmp_path / "config")

    # Memory that nobody has written to is made to show: transformers puts missing tensors in torch.empty_like.
    empty_like = torch.empty_like

    def poisoned(tensor: Tensor, **arguments: object) -> Tensor:
        out = empty_like(tensor, **arguments)  # type: ignore[call-overload]
        return out.fill_(float("nan")) if out.is_floating_point() and out.device.type != "meta" else out

    monkeypatch.setattr(torch, "empty_like", poisoned)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", config=config, dtype=dtype)
    monkeypatch.undo()

    loaded.requires_grad_(False)
    for name, tensor in (*loaded.named_parameters(), *loaded.named_buffers()):
        assert torch.isfinite(tensor).all(), name
    for index in (1, 3):
        inner, expected = ttt_layers(loaded)[index].inner, ttt_layers(fresh)[index].inner
        assert inner.W1.dtype == torch.float32
        assert 0.015 < float(inner.W1.std()) < 0.025
        for name in ("b1", "b2", "norm_weight", "norm_bias", "step_size_bias", "row_offsets"):
            assert torch.equal(getattr(inner, name), getattr(expected, name)), name
        assert float(ttt_layers(loaded)[index].wq.weight.float().std()) > 0.1
        assert (ttt_layers(loaded)[index].post_norm.weight == 1).all()
    # What the checkpoint has is what it has, also where TTT stands beside it.
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", dtype=dtype)
    kept = plain.state_dict()
    for name, tensor in loaded.state_dict().items():
        if name in kept:
            assert torch.equal(tensor, kept[name]), name
    if mode == "gated":
        assert not any(alpha.any() for alpha in gates(loaded).values())
        assert torch.equal(loaded.eval()(prompt()).logits, plain.eval()(prompt()).logits)


def test_an_unmounted_folder_is_refused_by_load_mounted(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds an unmounted LlamaForCausalLM"):
        load_mounted(tmp_path)


@pytest.mark.parametrize("mode", ["replace", "gated"])
def test_the_trained_difference_turns_a_fresh_mount_into_the_trained_one(mode: str, tmp_path: Path) -> None:
    trained, ids = mounted(mode=mode), prompt()
    save_ttt(trained, tmp_path / "difference.safetensors")
    fresh = mount(tiny_model(), layers=[1, 3], config=tiny_ttt(), mode=mode, window=5, sinks=2)
    assert not torch.equal(fresh(ids).logits, trained(ids).logits)
    load_ttt(fresh, tmp_path / "difference.safetensors")
    assert torch.equal(fresh(ids).logits, trained(ids).logits)
    # The bare decoder has the same names.
    assert ttt_state_dict(fresh).keys() == ttt_state_dict(fresh.model).keys()
    backbone = set(tiny_model().model.state_dict())
    assert not backbone & set(ttt_state_dict(fresh))
    assert all(name.startswith(("layers.1.", "layers.3.")) for name in ttt_state_dict(fresh))


def test_a_difference_of_another_model_or_shape_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "difference.safetensors"
    model = mounted()
    save_ttt(model, path)
    before = {name: tensor.clone() for name, tensor in ttt_state_dict(model).items()}
    for other, message in (
        (mounted(config=tiny_ttt(mini_batch_size=8)), "ttt.mini_batch_size is 4 there and 8 here"),
        (mounted(layers=[1, 2]), r"layers is \[1, 3\] there and \[1, 2\] here"),
        (mounted(mode="gated"), "mode is 'replace' there and 'gated' here"),
        (mounted("mistral"), "backbone is 'llama' there and 'mistral' here"),
    ):
        with pytest.raises(ValueError, match=message):
            load_ttt(other, path)
    tensors = load_file(path)
    with pytest.raises(ValueError, match="holds no trained difference"):
        save_file(tensors, tmp_path / "other.safetensors")
        load_ttt(model, tmp_path / "other.safetensors")
    name = "layers.1.self_attn.ttt.inner.W1"
    for changed, message in (
        ({k: v for k, v in tensors.items() if k != name}, f"lacks {name}"),
        (tensors | {"layers.1.surprise": torch.zeros(1)}, "has layers.1.surprise, which the model has not"),
        (tensors | {name: torch.zeros(3)}, rf"has {name} of shape \(3,\), the model's is \(4, 8, 32\)"),
    ):
        metadata = _metadata(path)
        save_file({k: torch.ones_like(v) for k, v in changed.items()}, tmp_path / "changed.safetensors", metadata)
        with pytest.raises(ValueError, match=message):
            load_ttt(model, tmp_path / "changed.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match="no readable safetensors"):
        load_ttt(model, tmp_path / "cut.safetensors")
    with pytest.raises(ValueError, match="there is no file"):
        load_ttt(model, tmp_path / "nowhere.safetensors")
    with pytest.raises(ValueError, match="no trained difference"):
        save_ttt(mount(tiny_model(), layers=(), window=4), path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in ttt_state_dict(model).items())


def _metadata(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return file.metadata()


CONTINUE = """
import sys
import torch
from backbones.mounting import load_cache, load_mounted
folder = sys.argv[1]
model = load_mounted(folder).eval()
cache = load_cache(folder + "/conversation.safetensors", model)
with torch.no_grad():
    for tokens in torch.load(folder + "/rest.pt"):
        logits = model(tokens, past_key_values=cache).logits
torch.save({"logits": logits, "tokens_seen": cache.get_seq_length()}, folder + "/out.pt")
"""


@torch.no_grad()
def test_a_saved_conversation_continues_identically_in_a_new_process(tmp_path: Path) -> None:
    model = mounted("mistral", layers=[1], window={0: 4}, config=tiny_ttt(pre_conv=True))
    model.save_pretrained(tmp_path)
    model, ids = load_mounted(tmp_path).eval(), prompt(2, 23)
    rest = [ids[:, 13:14], ids[:, 14:20], ids[:, 20:]]
    cache = model(ids[:, :13]).past_key_values
    save_cache(cache, tmp_path / "conversation.safetensors", model)
    torch.save(rest, tmp_path / "rest.pt")
    subprocess.run([sys.executable, "-c", CONTINUE, str(tmp_path)], check=True, timeout=120)
    for tokens in rest:
        expected = model(tokens, past_key_values=cache).logits
    found = torch.load(tmp_path / "out.pt")
    assert torch.equal(found["logits"], expected)
    assert found["tokens_seen"] == 23


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "mistral"])
@pytest.mark.parametrize("mode", ["replace", "gated"])
def test_a_conversation_is_saved_with_every_kind_of_layer(family: str, mode: str, tmp_path: Path) -> None:
    overrides = {"sliding_window": 6} if family == "mistral" else {}
    model = tiny_model(family, **overrides)
    mount(model, layers=[1, 2], mode=mode, window={3: 5}, sinks=2, config=tiny_ttt())
    ids = prompt(2, 17)
    cache = model(ids[:, :9]).past_key_values
    save_cache(cache, tmp_path / "c.safetensors", model)
    loaded = load_cache(tmp_path / "c.safetensors", model)
    for tokens in (ids[:, 9:10], ids[:, 10:15], ids[:, 15:]):
        expected = model(tokens, past_key_values=cache).logits
        assert torch.equal(model(tokens, past_key_values=loaded).logits, expected)
    assert loaded.nbytes == cache.nbytes


def test_a_conversation_of_a_model_mounted_otherwise_is_refused(tmp_path: Path) -> None:
    model, path = mounted(), tmp_path / "c.safetensors"
    save_cache(model(prompt()).past_key_values, path, model)
    with pytest.raises(ValueError, match=r"sinks is 2 there and 3 here"):
        load_cache(path, mounted(sinks=3))
    with pytest.raises(ValueError, match="dtype is 'float32' there and 'bfloat16' here"):
        load_cache(path, mounted().bfloat16())
    with pytest.raises(ValueError, match="the cache is empty"):
        save_cache(model_cache(model), path, model)
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="holds no conversation"):
        load_cache(tmp_path / "x.safetensors", model)
    with pytest.raises(ValueError, match=r"there is no file .*nowhere; write a conversation with save_cache"):
        load_cache(tmp_path / "nowhere", model)
    other = mount(tiny_model(), layers=[1, 3], config=tiny_ttt(), window=5, sinks=3)
    with pytest.raises(ValueError, match=r"the cache has layers.0.window.sink_keys of shape \(2, 2, 3, 8\)"):
        save_cache(other(prompt()).past_key_values, path, model)


# One model with every kind of layer: TTT (0), window (1), full attention or Mistral's own sliding one (2), both (3).
@pytest.mark.parametrize(
    ("family", "name", "shape"),
    [
        ("llama", "layers.0.ttt.sums.W2", (2, 4, 32, 8)),
        ("llama", "layers.0.ttt.conv.pre_conv", (2, 32, 3)),
        ("llama", "layers.1.window.sink_values", (2, 2, 2, 8)),
        ("llama", "layers.2.attention.values", (2, 2, 11, 8)),
        ("mistral", "layers.2.attention.keys", (2, 2, 5, 8)),
        ("llama", "layers.3.ttt.count", (2,)),
    ],
)
def test_a_damaged_conversation_is_refused_by_tensor(
    family: str, name: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    model = tiny_model(family, **({"sliding_window": 6} if family == "mistral" else {}))
    mount(model, layers=[0, 3], mode="gated", window={1: 5}, sinks=2, config=tiny_ttt(pre_conv=True))
    path = tmp_path / "c.safetensors"
    save_cache(model(prompt()).past_key_values, path, model)
    tensors, metadata = load_file(path), _metadata(path)
    assert tuple(tensors[name].shape) == shape
    expected = re.escape(str(shape))
    for changed, message in (
        ({k: t for k, t in tensors.items() if k != name}, rf"c.safetensors lacks {name}: it is damaged"),
        (tensors | {name: torch.zeros(1)}, rf"has {name} of shape \(1,\), the model's is {expected}: it is damaged"),
        (tensors | {name: tensors[name][:1].clone()}, rf"has {name} of shape \(1.*\), the model's is {expected}"),
        (tensors | {"surprise": torch.zeros(1)}, "has surprise, which the model has not"),
        ({}, f"lacks .*{name}"),
    ):
        save_file(changed, path, metadata)
        with pytest.raises(ValueError, match=message):
            load_cache(path, model)


def test_damaged_metadata_and_unreadable_files_are_refused(tmp_path: Path) -> None:
    model, path = mounted(), tmp_path / "c.safetensors"
    save_cache(model(prompt()).past_key_values, path, model)
    whole, tensors, metadata = path.read_bytes(), load_file(path), _metadata(path)
    for key, value, message in (
        ("config", None, "its metadata does not say which model it belongs to"),
        ("config", "{", "its metadata does not say which model it belongs to"),
        ("config", "[]", "its metadata does not say which model it belongs to"),
        ("config", "{}", "mounted otherwise: layer_types is None there"),
        ("version", None, "has version None; this code reads version 1"),
        ("tokens_seen", None, "tokens_seen in its metadata is None, expected a whole number"),
        ("tokens_seen", "many", "tokens_seen in its metadata is 'many'"),
        ("tokens_seen", "0", "tokens_seen in its metadata is '0'"),
    ):
        changed = {k: v for k, v in (metadata | {key: value}).items() if v is not None}
        save_file(tensors, path, changed)
        with pytest.raises(ValueError, match=message):
            load_cache(path, model)
    for size in (0, 5, 200, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"c\.safetensors is no readable safetensors file .*cut short"):
            load_cache(path, model)


def test_a_folder_that_does_not_exist_is_named_before_anything_is_written(tmp_path: Path) -> None:
    model = mounted()
    cache = model(prompt()).past_key_values
    for path, reason in ((tmp_path / "nowhere" / "c", "its folder does not exist"), (tmp_path, "it is a folder")):
        with pytest.raises(ValueError, match=f"cannot save a conversation to {path}: {reason}"):
            save_cache(cache, path, model)
        with pytest.raises(ValueError, match=f"cannot save a trained difference to {path}: {reason}"):
            save_ttt(model, path)
        with pytest.raises(ValueError, match="there is no file"):
            load_ttt(model, path)
