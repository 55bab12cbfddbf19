"""Moshi's configuration and its published checkpoints, in and out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from moshi_models import text_codes, text_lm
from safetensors.torch import load_file, save_file
from torch import Tensor

from backbones.moshi import FRAME_RATE_HZ, MoshiConfig, Stream, build_lm, load_lm, write_checkpoint

from moshi.models import loaders  # isort: skip  (after backbones.moshi, which sets how moshi is imported)

SMOKE = MoshiConfig.at_scale("smoke")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    write_checkpoint(build_lm(SMOKE), SMOKE, tmp_path)
    return tmp_path


def rewrite(folder: Path, **changes: object) -> None:
    """Change keys of the folder's config.json; None takes one out."""
    content = json.loads((folder / "config.json").read_text())
    content = {key: value for key, value in (content | changes).items() if value is not None or key not in changes}
    (folder / "config.json").write_text(json.dumps(content))


def rewrite_weights(folder: Path, change: object) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_the_published_config_is_the_packages_own() -> None:
    published = MoshiConfig.published()
    assert {name: published.lm_arguments()[name] for name in loaders._lm_kwargs} == loaders._lm_kwargs
    assert MoshiConfig.at_scale("full") == published and FRAME_RATE_HZ == 12.5
    lm = build_lm(published, device="meta", dtype=torch.bfloat16)
    theirs = loaders.get_moshi_lm(None, device="meta")
    assert {name: tensor.shape for name, tensor in lm.state_dict().items()} == {
        name: tensor.shape for name, tensor in theirs.state_dict().items()
    }
    assert sum(parameter.numel() for parameter in lm.parameters()) == pytest.approx(7.7e9, rel=0.01)


def test_the_published_model_has_seventeen_streams() -> None:
    streams = MoshiConfig.published().streams
    assert len(streams) == 17 and [stream.kind for stream in streams].count("own audio") == 8
    assert streams[0] == Stream(
        name="text", kind="text", codebook=0, delay_frames=0, cardinality=32000, is_predicted=True
    )
    assert streams[9] == Stream(
        name="heard audio 0", kind="heard audio", codebook=0, delay_frames=0, cardinality=2048, is_predicted=False
    )
    assert [stream.delay_frames for stream in streams] == [0, 0, *[1] * 7, 0, *[1] * 7]
    assert [stream.name for stream in MoshiConfig.text_only().streams] == ["text"]


def test_every_scale_builds_and_the_gpu_one_has_about_90_million_parameters() -> None:
    for scale, millions in (("smoke", 0.07), ("cpu", 1.8), ("gpu", 87)):
        lm = build_lm(MoshiConfig.at_scale(scale), device="meta")
        assert sum(parameter.numel() for parameter in lm.parameters()) / 1e6 == pytest.approx(millions, rel=0.05)
    with pytest.raises(ValueError, match="no scale 'huge'"):
        MoshiConfig.at_scale("huge")


def test_a_text_only_model_has_no_parameter_that_its_loss_does_not_reach() -> None:
    lm = build_lm(MoshiConfig.text_only(dim=16, num_heads=2, num_layers=1))
    lm.forward_text(text_codes(lm, rows=1, frames=3))[1].logsumexp(-1).sum().backward()
    assert [name for name, parameter in lm.named_parameters() if parameter.grad is None] == []


def test_a_written_checkpoint_is_read_back_bit_for_bit_by_us_and_by_the_package(folder: Path) -> None:
    torch.manual_seed(0)
    expected = build_lm(SMOKE).state_dict()
    assert MoshiConfig.from_file(folder / "config.json") == replace(SMOKE, **depth_defaults())
    ours = load_lm(folder)
    theirs = loaders.CheckpointInfo(
        folder / "model.safetensors", Path(), Path(), lm_config={
            key: value for key, value in json.loads((folder / "config.json").read_text()).items() if key != "moshi_name"
        },
    ).get_moshi(dtype=torch.float32)  # fmt: skip
    for lm in (ours, theirs):
        assert not lm.training
        assert all(torch.equal(tensor, expected[name]) for name, tensor in lm.state_dict().items())
    assert {parameter.dtype for parameter in load_lm(folder, dtype=torch.bfloat16).parameters()} == {torch.bfloat16}


def depth_defaults() -> dict[str, object]:
    """What a written config spells out of what was left to the main transformer."""
    return {"depformer_kv_repeat": 1}


def test_older_names_of_attention_weights_are_read(folder: Path) -> None:
    expected = load_lm(folder).state_dict()

    def to_older_names(tensors: dict[str, Tensor]) -> None:
        for older, current, steps in (("in_proj_weight", "in_projs", 1), ("out_proj.weight", "out_projs", 1)):
            prefix = "transformer.layers.0.self_attn."
            tensors[prefix + older] = tensors.pop(f"{prefix}{current}.0.weight")
            prefix, steps = "depformer.layers.1.self_attn.", SMOKE.dep_q
            parts = [tensors.pop(f"{prefix}{current}.{step}.weight") for step in range(steps)]
            tensors[prefix + older] = torch.cat(parts)

    rewrite_weights(folder, to_older_names)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in load_lm(folder).state_dict().items())


def test_the_weights_file_is_the_one_that_the_config_names(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    with pytest.raises(ValueError, match=r"no weights file .*model\.safetensors"):
        load_lm(folder)
    rewrite(folder, moshi_name="other.safetensors")
    load_lm(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"there is no file .*config\.json"):
        load_lm(folder)
    (folder / "other.safetensors").rename(folder / "model.safetensors")
    load_lm(folder, config=SMOKE)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"n_q": 6, "delays": [0] * 7}, r"holds 4 audio codebooks \(emb\.\*\), the config says n_q=6"),
        ({"dep_q": 3}, r"holds 2 audio codebooks \(linears\.\*\), the config says dep_q=3"),
        ({"num_layers": 5}, r"lacks transformer\.layers\.4\S+, transformer\S+, transformer\S+ and 3 more$"),
        ({"num_layers": 3}, r"has transformer\.layers\.3\S+, .* and 3 more, which such a model has not"),
        ({"text_card": 50}, r"text_emb\.weight of shape \(41, 32\) \(the config's is \(51, 32\)\), .*"),
        ({"dim": None, "context": None, "card": None}, "config.json lacks dim, context, card"),
        ({"layers": 4, "num_head": 1}, "keys that no plain Moshi has: layers, num_head"),
        ({"conditioners": {"description": {"type": "lut"}}}, "are not plain"),
        ({"lora": True}, "has lora True"),
        ({"delays": [0, 0]}, "delays has 2 entries; n_q=4 codebooks and the text need 5"),
        ({"dim": 33}, "dim 33 is not a multiple of num_heads 4"),
        ({"causal": False}, "causal=False"),
        ({"norm": "batch"}, "norm must be one of"),
        ({"context": 0}, "context must be a whole number of at least 1"),
    ],
)
def test_what_does_not_fit_is_named(folder: Path, changes: dict[str, object], match: str) -> None:
    rewrite(folder, **changes)
    with pytest.raises(ValueError, match=match):
        load_lm(folder)


def test_damaged_files_are_named(folder: Path) -> None:
    with pytest.raises(ValueError, match="there is no folder"):
        load_lm(folder / "nowhere")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:1000])
    with pytest.raises(ValueError, match="no readable safetensors file"):
        load_lm(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is no JSON"):
        load_lm(folder)


def test_keys_about_other_files_and_parts_that_are_off_are_taken(folder: Path) -> None:
    off = {"mimi_name": "mimi", "tokenizer_name": "t", "model_id": {"sig": "a"}, "conditioners": {}}
    off |= {"fuser": {"sum": [], "cross": [], "prepend": [], "cross_attention_pos_emb": False}}
    rewrite(folder, **off, cross_attention=False, demux_second_stream=False, depformer_causal=True)
    rewrite(folder, depformer_kv_repeat=None, existing_text_padding_id=None)
    load_lm(folder)


def test_a_checkpoint_is_not_written_under_a_config_that_is_not_its_own(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no checkpoint of this config"):
        write_checkpoint(text_lm(), MoshiConfig.text_only(), tmp_path)
    assert list(tmp_path.iterdir()) == []
