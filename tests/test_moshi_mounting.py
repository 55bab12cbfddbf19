"""Mounting on Moshi: what changes and what must not, precision, saved differences, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from moshi_models import MINI_BATCH, open_gates, small_ttt, speaking_lm, streamed, text_codes, text_lm, whole
from torch import Tensor

from backbones import MoshiHost, load_backbone
from backbones.moshi import (
    MoshiConfig,
    attention_layers,
    build_lm,
    gates,
    give_ring_room,
    is_mounted,
    load_lm,
    load_ttt,
    mount,
    save_ttt,
    set_context,
    set_inner_step_size,
    ttt_layers,
    write_checkpoint,
)
from ttt_core import TTTConfig
from ttt_core import mount as mount_any

from moshi.models import loaders  # isort: skip  (after backbones.moshi, which sets how moshi is imported)
from moshi.models.lm import LMModel  # isort: skip


def test_the_cores_mount_finds_the_model_and_the_depth_transformer_stays() -> None:
    lm = speaking_lm()
    before = {name: tensor.clone() for name, tensor in lm.state_dict().items()}
    mounted = mount_any(lm, layers=range(2, 4), config=small_ttt(lm), mode="replace", window=6, sinks=2)
    assert mounted is lm and MoshiHost().matches(lm) and is_mounted(lm)
    assert list(ttt_layers(lm)) == [2, 3] and list(attention_layers(lm)) == [0, 1]
    after = lm.state_dict()
    kept = [
        name for name in before if not name.startswith(("transformer.layers.2.self_", "transformer.layers.3.self_"))
    ]
    assert all(torch.equal(after[name], before[name]) for name in kept)
    assert not any("depformer" in name for name in after if ".ttt." in name)


def test_a_closed_gate_leaves_the_model_bit_identical() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        lm = text_lm().to(dtype)
        codes = text_codes(lm, rows=2, frames=17)
        before = whole(lm, codes), streamed(lm, codes)
        mount(lm, [0, 2], small_ttt(lm), mode="gated")
        assert all(torch.equal(a, b) for a, b in zip((whole(lm, codes), streamed(lm, codes)), before, strict=True))
        open_gates(gates(lm))
        assert not torch.equal(whole(lm, codes), before[0])


@pytest.mark.parametrize("kv_repeat", [1, 2])
def test_projections_start_from_the_attentions_with_shared_heads_repeated(kv_repeat: int) -> None:
    lm = text_lm(num_heads=4, kv_repeat=kv_repeat)
    attention = lm.transformer.layers[1].self_attn
    seen: dict[str, Tensor] = {}

    class Capturing(torch.nn.Module):
        def forward(self, q: Tensor, k: Tensor, offset: Tensor, time_before_heads: bool) -> tuple[Tensor, Tensor]:
            seen.update(q=q, k=k.repeat_interleave(kv_repeat, dim=1))
            return q, k

    attention.rope = Capturing()  # sees queries and keys as the attention itself makes them
    x = torch.randn(2, 5, lm.dim)
    attention(x, x, x)
    ttt = ttt_layers(mount(lm, [1]))[1]
    for projection, found in ((ttt.wq, seen["q"]), (ttt.wk, seen["k"])):
        torch.testing.assert_close(projection(x).unflatten(2, (4, 6)).transpose(1, 2), found)
    kv_dim = lm.dim // kv_repeat
    values = attention.in_projs[0](x)[..., -kv_dim:].unflatten(2, (-1, 6)).repeat_interleave(kv_repeat, dim=2)
    torch.testing.assert_close(ttt.wv(x), values.flatten(2))
    assert torch.equal(ttt.wo.weight, attention.out_projs[0].weight)


def test_gradients_reach_every_ttt_parameter_through_the_batched_forward_with_its_depth_transformer() -> None:
    for mode in ("replace", "gated"):
        lm = mount(speaking_lm().train(), [1, 3], small_ttt(speaking_lm()), mode)
        open_gates(gates(lm))
        out = lm(text_codes(lm, rows=2, frames=14))
        loss = out.text_logits.logsumexp(-1).mean() + out.logits[out.mask].logsumexp(-1).mean()
        loss.backward()
        trained = [*ttt_layers(lm).values()]
        parameters = {name: p for layer in trained for name, p in layer.named_parameters()}
        assert {name for name, p in parameters.items() if p.grad is None or not p.grad.any()} == set()
        assert all(alpha.grad is not None and alpha.grad.any() for alpha in gates(lm).values())
        assert lm.depformer.layers[0].self_attn.in_projs[0].weight.grad is not None


def test_the_inner_step_size_can_be_warmed_up() -> None:
    lm = text_lm()
    mount(lm, [1], small_ttt(lm))
    codes = text_codes(lm, rows=1, frames=9)
    usual = whole(lm, codes)
    set_inner_step_size(lm, 0.0)
    still = whole(lm, codes)
    set_inner_step_size(lm, None)
    assert torch.equal(whole(lm, codes), usual) and not torch.equal(still, usual)


def published_folder(tmp_path: Path) -> Path:
    config = MoshiConfig.at_scale("smoke")
    torch.manual_seed(0)
    write_checkpoint(build_lm(config), config, tmp_path / "published")
    return tmp_path / "published"


def loaded_by_the_package(folder: Path) -> LMModel:
    config = MoshiConfig.from_file(folder / "config.json")
    return loaders.get_moshi_lm(folder / "model.safetensors", config.lm_arguments(), dtype=torch.bfloat16)


def with_lora_before(folder: Path) -> LMModel:
    lm = loaders.get_lora_moshi(loaded_by_the_package(folder), None, lora_rank=2, lora_scaling=2.0)
    return mount(lm, [2], small_ttt(lm))


def with_lora_after(folder: Path, fuse_lora: bool) -> LMModel:
    lm = loaded_by_the_package(folder)
    mount(lm, [2], small_ttt(lm))
    from safetensors.torch import save_file

    torch.manual_seed(2)
    adapted = loaders.get_lora_moshi(lm, None, lora_rank=2, lora_scaling=2.0)
    trained = {name: tensor for name, tensor in adapted.state_dict().items() if ".lora_" in name}
    save_file(trained, folder / "lora.safetensors")
    lm = loaded_by_the_package(folder)
    mount(lm, [2], small_ttt(lm))
    return loaders.get_lora_moshi(lm, folder / "lora.safetensors", 2, 2.0, fuse_lora=fuse_lora)


@pytest.mark.parametrize(
    "prepare",
    [
        pytest.param(lambda folder: mount(lm := loaded_by_the_package(folder), [2], small_ttt(lm)), id="get_moshi_lm"),
        pytest.param(with_lora_before, id="get_lora_moshi, then mount"),
        pytest.param(lambda folder: with_lora_after(folder, fuse_lora=False), id="mount, then get_lora_moshi"),
        pytest.param(lambda folder: with_lora_after(folder, fuse_lora=True), id="mount, then fused get_lora_moshi"),
        pytest.param(
            lambda folder: mount(lm := speaking_lm(), [2], small_ttt(lm)).to(torch.bfloat16), id=".to(bfloat16)"
        ),
        pytest.param(
            lambda folder: mount(
                lm := build_lm(MoshiConfig.at_scale("smoke"), dtype=torch.bfloat16), [2], small_ttt(lm)
            ),
            id="LMModel(dtype=bfloat16)",
        ),
    ],
)
def test_inner_parameters_and_states_stay_fp32_on_every_path_to_bf16(
    prepare: Callable[[Path], LMModel], tmp_path: Path
) -> None:
    lm = prepare(published_folder(tmp_path)).eval()
    ttt = ttt_layers(lm)[2]
    assert {parameter.dtype for parameter in ttt.inner_parameters()} == {torch.float32}
    assert {p.dtype for name, p in lm.named_parameters() if ".inner." not in name} == {torch.bfloat16}
    codes = text_codes(lm, rows=2, frames=MINI_BATCH + 1)
    with torch.no_grad(), lm.streaming(2):
        for frame in codes.split(1, dim=2):
            hidden, _ = lm.forward_text(frame)
        held = lm.transformer.layers[2].self_attn._streaming_state.held
        assert hidden.dtype == torch.bfloat16 and hidden.isfinite().all()
        assert held.W1.dtype == torch.float32
        # More digits than bfloat16 has: it was computed in FP32, not only stored so.
        assert not torch.equal(held.W1, held.W1.bfloat16().float())


def test_lora_of_an_attention_is_part_of_what_ttt_starts_from() -> None:
    plain, adapted = text_lm(), text_lm()
    loaders.get_lora_moshi(adapted, None, lora_rank=2, lora_scaling=3.0, dtype=torch.float32)
    attention = adapted.transformer.layers[1].self_attn
    low_rank = attention.in_projs[0].lora_B.weight @ attention.in_projs[0].lora_A.weight
    mount(plain, [1])
    mount(adapted, [1])
    found = ttt_layers(adapted)[1].wv.weight - ttt_layers(plain)[1].wv.weight
    torch.testing.assert_close(found, 3.0 * low_rank[2 * plain.dim :])


def test_a_base_checkpoint_and_the_saved_difference_give_the_trained_model_back(tmp_path: Path) -> None:
    folder = published_folder(tmp_path)
    for mode in ("replace", "gated"):
        trained = load_lm(folder)
        base = trained.state_dict()
        mount(trained, [1, 3], small_ttt(trained), mode, window=7, sinks=1)
        with pytest.raises(RuntimeError, match="Missing key"):
            trained.load_state_dict(base)
        torch.manual_seed(7)
        with torch.no_grad():
            for layer in ttt_layers(trained).values():
                for parameter in layer.parameters():
                    parameter.add_(0.1 * torch.randn_like(parameter))
        open_gates(gates(trained))
        save_ttt(trained, tmp_path / "ttt.safetensors")
        again = mount(load_lm(folder), [1, 3], small_ttt(trained), mode, window=7, sinks=1)
        codes = text_codes(trained, rows=1, frames=13)
        assert not torch.equal(whole(again, codes), whole(trained, codes))
        load_ttt(again, tmp_path / "ttt.safetensors")
        assert torch.equal(whole(again, codes), whole(trained, codes))
    other = mount(load_lm(folder), [1], small_ttt(trained), "gated")
    with pytest.raises(ValueError, match=r"layers is \[1, 3\] there and \[1\] here"):
        load_ttt(other, tmp_path / "ttt.safetensors")
    with pytest.raises(ValueError, match="no TTT layers"):
        save_ttt(load_lm(folder), tmp_path / "ttt.safetensors")
    with pytest.raises(ValueError, match="save_ttt"):
        write_checkpoint(trained, MoshiConfig.at_scale("smoke"), tmp_path / "mounted")


def streaming_once(lm: LMModel) -> LMModel:
    """A model whose streaming children are cached already: mounting must make it look again."""
    streamed(lm, text_codes(lm, rows=1, frames=2))
    return lm


def test_mounting_after_a_stream_is_seen_by_the_next_one() -> None:
    for mode in ("replace", "gated"):
        lm = streaming_once(text_lm())
        mount(lm, [1], small_ttt(lm), mode)
        with torch.no_grad(), lm.streaming(1):
            lm.forward_text(text_codes(lm, rows=1, frames=1))
            mixer = lm.transformer.layers[1].self_attn
            state = (mixer if mode == "replace" else mixer.ttt)._streaming_state
            assert state.held.count.tolist() == [1]


def test_nothing_is_mounted_or_resized_while_streaming() -> None:
    lm = text_lm()
    with lm.streaming(1):
        for change in (lambda: mount(lm, [0]), lambda: give_ring_room(lm, 2), lambda: set_context(lm, 5)):
            with pytest.raises(ValueError, match="while the model is streaming"):
                change()
    assert not is_mounted(lm)
    with pytest.raises(ValueError, match=r"set_context\(lm, positions\)"):
        give_ring_room(set_context(lm, None), 2).streaming(1)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"layers": [40]}, r"backbone 'moshi' has no layer 40 to mount on; it has layers 0-2$"),
        ({"layers": [-1]}, "has no layer -1"),
        ({"layers": [1, 1]}, "mounted on once"),
        ({"layers": []}, "nothing to mount"),
        ({"layers": [1.5]}, "whole number, got 1.5"),
        ({"layers": [1], "mode": "beside"}, "'replace' or 'gated', got 'beside'"),
        ({"layers": [1], "config": {"hidden_size": 24}}, "must be a TTTConfig"),
        ({"layers": [1], "config": TTTConfig(hidden_size=24, num_heads=2, head_dim=8)}, "24 -> 24; the config gives"),
        ({"layers": [1], "window": {1: 4}}, "TTT replaces it"),
        ({"layers": [1], "window": 0}, "1 or more positions, got 0"),
        ({"layers": [1], "sinks": 2}, "needs a window"),
    ],
)
def test_what_cannot_be_mounted_is_refused_and_leaves_the_model_as_it_was(
    arguments: dict[str, object], match: str
) -> None:
    lm = text_lm()
    codes = text_codes(lm, rows=1, frames=5)
    before, names = whole(lm, codes), list(lm.state_dict())
    with pytest.raises(ValueError, match=match):
        mount(lm, **arguments)
    assert list(lm.state_dict()) == names and not is_mounted(lm)
    assert torch.equal(whole(lm, codes), before)


def test_the_published_layers_are_named_and_a_second_mount_is_refused() -> None:
    lm = build_lm(MoshiConfig.published(), device="meta")
    with pytest.raises(ValueError, match="backbone 'moshi' has no layer 40 to mount on; it has layers 0-31"):
        mount(lm, [40])
    for arguments in ({"layers": [1]}, {"layers": [], "window": 5}):
        lm = mount(text_lm(), **arguments)
        with pytest.raises(ValueError, match="mounted already"):
            mount(lm, [2])
    with pytest.raises(ValueError, match="sinks are re-indexed"):
        mount(text_lm(positional_embedding="sin"), [], window=4, sinks=1)
    with pytest.raises(ValueError, match=r"of an LMGen: its \.lm_model"):
        mount(torch.nn.Linear(2, 2), [0])


def test_contexts_are_set_for_the_layers_that_have_attention_of_their_own() -> None:
    lm = mount(text_lm(), [2], window={0: 4})
    set_context(lm, 9)
    assert [attention.context for attention in attention_layers(lm).values()] == [4, 9]
    with pytest.raises(ValueError, match="layer 0 has a mounted window of 4"):
        set_context(lm, 9, layers=[0])
    with pytest.raises(ValueError, match="layer 2 has no attention"):
        set_context(lm, 9, layers=[2])
    for tokens in (0, 1.5, True):
        with pytest.raises(ValueError, match="tokens_per_call must be a whole number"):
            give_ring_room(lm, tokens)


def test_a_backbone_takes_ttt_in_the_top_quarter_of_its_layers(tmp_path: Path) -> None:
    lm = load_backbone("moshi", scale="smoke", ttt={"mini_batch_size": 16, "inner_model": "linear"})
    assert isinstance(lm, LMModel) and list(ttt_layers(lm)) == [3]
    config = ttt_layers(lm)[3].config
    assert (config.hidden_size, config.num_heads, config.mini_batch_size) == (32, 4, 16)
    folder = published_folder(tmp_path)
    assert not is_mounted(load_backbone("moshi", scale="full", weights=folder))
    with pytest.raises(ValueError, match=r"TTTConfig has no field \['foo'\]"):
        load_backbone("moshi", weights="nowhere", ttt={"foo": 1})
    with pytest.raises(ValueError, match="there is no folder nowhere"):
        load_backbone("moshi", weights="nowhere")


BLOCKED = """
import importlib.abc, sys
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname, path=None, target=None):
        if fullname.partition(".")[0] == "moshi":
            raise ModuleNotFoundError("No module named 'moshi'", name="moshi")
sys.meta_path.insert(0, Refuse())
from torch import nn
from backbones import MoshiHost, load_backbone
assert not MoshiHost().matches(nn.Linear(1, 1))
try:
    load_backbone("moshi")
except ImportError as error:
    print(error)
"""


def test_without_moshi_the_import_says_what_to_install_and_other_backbones_still_mount() -> None:
    finished = subprocess.run([sys.executable, "-c", BLOCKED], capture_output=True, text=True)
    assert "needs the package moshi 0.2.13, and moshi is not installed: run `make setup`" in finished.stdout, finished
