"""Published folders in and out, and the faults they can have."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
import whisper
from safetensors.torch import load_file, save_file

from backbones import load_backbone
from backbones.llama_omni import LlamaOmni, LlamaOmniConfig, checkpoint


@pytest.fixture
def folder(golden: Path, tmp_path: Path) -> Path:
    shutil.copytree(golden / "llama_omni", tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {key: t for path in sorted(folder.glob("model*.safetensors")) for key, t in load_file(path).items()}


@pytest.mark.parametrize("max_shard_bytes", [10**9, 300_000])
def test_saving_writes_the_published_folder_bit_by_bit(folder: Path, tmp_path: Path, max_shard_bytes: int) -> None:
    LlamaOmni.from_checkpoint(folder).save_checkpoint(tmp_path / "saved", max_shard_bytes=max_shard_bytes)
    published, saved = weights(folder), weights(tmp_path / "saved")
    assert published.keys() == saved.keys()
    assert all(torch.equal(published[key], saved[key]) for key in published)
    files = sorted(path.name for path in (tmp_path / "saved").iterdir())
    if max_shard_bytes == 10**9:
        assert files == ["config.json", "generation_config.json", "model.safetensors"]
    else:
        assert "model.safetensors.index.json" in files and len(files) > 4
    config, saved_config = (json.loads((f / "config.json").read_text()) for f in (folder, tmp_path / "saved"))
    assert {key: saved_config.get(key) for key in config} == config
    again = LlamaOmni.from_checkpoint(tmp_path / "saved")
    ids = torch.tensor([[3, 4, 5]])
    assert torch.equal(again(ids).logits, LlamaOmni.from_checkpoint(folder)(ids).logits)


def test_saving_over_another_layout_leaves_one_set_of_weights(folder: Path) -> None:
    model = LlamaOmni.from_checkpoint(folder)
    model.save_checkpoint(folder, max_shard_bytes=300_000)
    assert not (folder / "model.safetensors").exists()
    model.save_checkpoint(folder)
    assert sorted(p.name for p in folder.glob("model*")) == ["model.safetensors"]


def test_the_rotary_format_of_transformers_5_is_read_as_that_of_4(folder: Path) -> None:
    older = json.loads((folder / "config.json").read_text())
    newer = {key: value for key, value in older.items() if key not in ("rope_theta", "rope_scaling")}
    newer["rope_parameters"] = {"rope_theta": older["rope_theta"], **older["rope_scaling"]}
    assert LlamaOmniConfig.from_published(newer) == LlamaOmniConfig.from_published(older)
    rotary = LlamaOmniConfig.from_published(newer).llm_config().rope_parameters
    assert rotary == {"rope_theta": 500000.0, **older["rope_scaling"]}


@pytest.mark.parametrize("fault", ["missing", "unknown", "shape"])
def test_a_checkpoint_that_does_not_fit_names_what_is_wrong(folder: Path, fault: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    if fault == "missing":
        del tensors["speech_generator.input_proj.bias"]
        match = "missing speech_generator.input_proj.bias"
    elif fault == "unknown":
        tensors["model.extra"] = torch.zeros(1)
        match = "unknown model.extra"
    else:
        tensors["lm_head.weight"] = torch.zeros(319, 64)
        match = r"lm_head.weight is \(319, 64\), expected \(320, 64\)"
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match=match):
        LlamaOmni.from_checkpoint(folder)


def test_a_folder_without_weights_with_torn_ones_or_another_models_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config.json does not exist"):
        LlamaOmni.from_checkpoint(tmp_path)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        LlamaOmni.from_checkpoint(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"neither model.safetensors nor"):
        LlamaOmni.from_checkpoint(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.safetensors"}}')
    with pytest.raises(ValueError, match=r"model-1.safetensors does not exist"):
        LlamaOmni.from_checkpoint(folder)
    (folder / "config.json").write_text('{"model_type": "llama", "vocab_size": 3}')
    with pytest.raises(ValueError, match="model_type 'llama'"):
        LlamaOmniConfig.from_published(json.loads((folder / "config.json").read_text()))


def test_the_encoder_comes_from_a_whisper_file_where_the_folder_has_none(folder: Path, tmp_path: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({k: t for k, t in tensors.items() if "speech_encoder" not in k}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"no speech encoder.*speech_encoder_path.*large-v3.pt"):
        LlamaOmni.from_checkpoint(folder)
    dimensions = whisper.model.ModelDimensions(
        n_mels=80,
        n_audio_ctx=70,
        n_audio_state=32,
        n_audio_head=4,
        n_audio_layer=3,
        n_vocab=11,
        n_text_ctx=5,
        n_text_state=8,
        n_text_head=2,
        n_text_layer=1,
    )
    whole = whisper.model.Whisper(dimensions)
    path = tmp_path / "large-v3.pt"
    torch.save({"dims": vars(dimensions), "model_state_dict": whole.state_dict()}, path)
    model = LlamaOmni.from_checkpoint(folder, speech_encoder_path=path)
    mel = torch.randn(140, 80)
    assert torch.allclose(model.encode_speech([mel]).segments[0], whole.encoder(mel.T[None])[0], atol=1e-5)
    # Heads do not show in shapes: four for 32 channels is unusual, so the saved folder has to say it.
    model.save_checkpoint(tmp_path / "saved")
    assert LlamaOmni.from_checkpoint(tmp_path / "saved").config == model.config
    torch.save({"weights": 1}, path)
    with pytest.raises(ValueError, match="not a whisper file"):
        LlamaOmni.from_checkpoint(folder, speech_encoder_path=path)


def edit_json(path: Path, **changes: object) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**content, **changes}))


def test_heads_that_nothing_tells_are_assumed_aloud_and_can_be_given(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assumed = LlamaOmni.from_checkpoint(folder)
    assert assumed.config.speech_encoder_heads == 2 and "no published whisper is 32 wide" in caplog.text
    caplog.clear()
    given = LlamaOmni.from_checkpoint(folder, speech_encoder_heads=4)
    assert given.speech_encoder.blocks[0].attn.n_head == 4
    mel = torch.randn(100, given.config.speech_encoder_mel_bins)
    assert not torch.allclose(given.encode_speech([mel]).segments[0], assumed.encode_speech([mel]).segments[0])
    given.save_checkpoint(tmp_path / "saved")
    assert LlamaOmni.from_checkpoint(tmp_path / "saved").config == given.config
    edit_json(folder / "config.json", speech_encoder_heads=8)
    assert LlamaOmni.from_checkpoint(folder).config.speech_encoder_heads == 8
    published = {**LlamaOmniConfig().to_published(), "speech_encoder_hidden_size": 384}
    assert LlamaOmniConfig.from_published(published).speech_encoder_heads == 6
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    with pytest.raises(ValueError, match="not a multiple of speech_encoder_heads 5"):
        LlamaOmni.from_checkpoint(folder, speech_encoder_heads=5)


@pytest.mark.parametrize(
    "field, value, match",
    [
        ("hidden_size", "48", "hidden_size must be a whole number .* got '48'"),
        ("num_attention_heads", 0, "num_attention_heads must be a whole number of at least 1"),
        ("num_key_value_heads", 3, "not a multiple of num_key_value_heads 3"),
        ("head_dim", 7, "head_dim must be even"),
        ("ctc_decoder_config", "(2,128,0,160)", "ctc_decoder_config .* at least 1"),
        ("ctc_decoder_config", None, "ctc_decoder_config must be a text"),
        ("speech_generator_type", None, "speech_generator_type must be a text"),
        ("rope_scaling", {"factor": 8.0}, "rope_scaling must be none or name a rope_type"),
        ("rope_scaling", {"type": "linear"}, r"needs numbers for \['factor'\]"),
        ("rope_parameters", [1], "rope_parameters must be a mapping"),
        ("pad_token_id", 9999, "pad_token_id 9999 is beyond the vocabulary"),
        ("eos_token_id", [2, "x"], "eos_token_id must be a token id"),
        ("ctc_loss_weight", "x", "ctc_loss_weight must be a finite number"),
        ("tie_word_embeddings", "no", "tie_word_embeddings must be true or false"),
        ("speech_encoder_hidden_size", None, "speech_encoder_hidden_size must be a whole number"),
    ],
)
def test_a_value_of_the_wrong_kind_in_the_config_is_named_with_its_file(
    folder: Path, field: str, value: object, match: str
) -> None:
    edit_json(folder / "config.json", **{field: value})
    with pytest.raises(ValueError, match=f"{folder.name}/config.json: .*{match}"):
        LlamaOmni.from_checkpoint(folder)


@pytest.mark.parametrize(
    "key, tensor, match",
    [
        ("model.speech_encoder.conv1.weight", torch.zeros(5), "conv1.weight must have 3 dimensions"),
        ("model.speech_encoder.positional_embedding", torch.zeros(()), r"2 dimensions, got shape \(\)"),
        ("model.embed_tokens.weight", torch.zeros(320, 64, dtype=torch.int8), "embed_tokens.weight is torch.int8"),
        ("lm_head.weight", torch.zeros(320, 64).to(torch.float8_e4m3fn), "lm_head.weight is torch.float8_e4m3fn"),
    ],
)
def test_a_tensor_of_the_wrong_rank_or_numbers_is_named_with_its_file(
    folder: Path, key: str, tensor: torch.Tensor, match: str
) -> None:
    save_file({**load_file(folder / "model.safetensors"), key: tensor}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=f"model.safetensors.*{match}"):
        LlamaOmni.from_checkpoint(folder)


def test_files_of_another_kind_are_refused_by_name(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"dtype must be float16.*got torch.int8"):
        LlamaOmni.from_checkpoint(folder, dtype=torch.int8)
    path = tmp_path / "whisper.pt"
    path.write_bytes(b"no whisper")
    with pytest.raises(ValueError, match=r"whisper.pt is not a readable torch weights file"):
        LlamaOmni.from_checkpoint(folder, speech_encoder_path=path)
    torch.save({"dims": {}, "model_state_dict": {}}, path)
    with pytest.raises(ValueError, match=r"whisper.pt is not a whisper file: its 'dims' must give 'n_audio_head'"):
        LlamaOmni.from_checkpoint(folder, speech_encoder_path=path)
    (folder / "model.safetensors").unlink()
    for content, match in {"{}": "no usable 'weight_map'", "[]": "must hold a JSON object, got a list"}.items():
        (folder / "model.safetensors.index.json").write_text(content)
        with pytest.raises(ValueError, match=f"index.json.*{match}"):
            LlamaOmni.from_checkpoint(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"config.json must hold a JSON object, got a list"):
        LlamaOmni.from_checkpoint(folder)


def test_the_generation_config_decides_on_end_and_padding_ids_only(folder: Path, tmp_path: Path) -> None:
    (folder / "generation_config.json").unlink()
    assert LlamaOmni.from_checkpoint(folder).config.end_token_ids == (257, 258)
    written = {"eos_token_id": [301, 302], "pad_token_id": 7, "temperature": 0.6, "top_p": 0.9}
    edit_json(folder / "generation_config.json", **written)
    model = LlamaOmni.from_checkpoint(folder)
    assert model.config.end_token_ids == (301, 302) and model.config.pad_token_id == 7
    ids = torch.tensor([[3, 4]])
    same = [model.generate(ids, max_new_tokens=6, speak=False).text_ids for _ in range(2)]
    assert torch.equal(*same), "greedy, whatever temperature the file wishes for"
    model.save_checkpoint(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "generation_config.json").read_text()) == written
    assert LlamaOmni.from_checkpoint(tmp_path / "saved").config == model.config
    LlamaOmni.tiny().save_checkpoint(tmp_path / "saved")
    assert LlamaOmni.from_checkpoint(tmp_path / "saved").config.end_token_ids == (2,), "nothing stale decides"
    edit_json(folder / "generation_config.json", pad_token_id=999)
    with pytest.raises(ValueError, match=r"generation_config.json: pad_token_id 999"):
        LlamaOmni.from_checkpoint(folder)


@pytest.mark.parametrize("failing_part", [0, 2])
def test_a_save_that_fails_midway_leaves_the_folder_as_it_was(
    tmp_path: Path, failing_part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    LlamaOmni.tiny(seed=1).save_checkpoint(tmp_path, max_shard_bytes=300_000)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    parts = iter(range(100))

    def disk_runs_full(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
        save_file(tensors, path, metadata=metadata)
        if next(parts) == failing_part:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", disk_runs_full)
    with pytest.raises(OSError, match="No space left"):
        LlamaOmni.tiny(seed=2).save_checkpoint(tmp_path, max_shard_bytes=300_000)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_dtype_can_be_asked_for_and_a_tied_head_is_stored_once(folder: Path, tmp_path: Path) -> None:
    half = LlamaOmni.from_checkpoint(folder, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert half.llm.model.rotary_emb.inv_freq.dtype == torch.float32
    half.save_checkpoint(tmp_path / "half")
    assert LlamaOmni.from_checkpoint(tmp_path / "half").dtype == torch.bfloat16
    tied = LlamaOmni.tiny(tie_word_embeddings=True, seed=2)
    tied.save_checkpoint(tmp_path / "tied")
    assert "lm_head.weight" not in weights(tmp_path / "tied")
    again = LlamaOmni.from_checkpoint(tmp_path / "tied")
    assert again.llm.lm_head.weight is again.llm.model.embed_tokens.weight
    ids = torch.tensor([[3, 4]])
    assert torch.equal(again(ids).logits, tied(ids).logits)


def test_a_model_changed_since_it_was_built_is_not_saved_as_published(tmp_path: Path) -> None:
    model = LlamaOmni.tiny()
    model.llm.model.layers[3].self_attn = torch.nn.Linear(64, 64)
    with pytest.raises(ValueError, match="save_ttt"):
        model.save_checkpoint(tmp_path / "saved")


def test_a_backbone_is_built_by_name_at_each_scale_or_from_its_folder(folder: Path) -> None:
    small, larger = load_backbone("llama-omni", scale="smoke"), load_backbone("llama-omni", scale="cpu")
    count = [sum(p.numel() for p in model.parameters()) for model in (small, larger)]
    assert count[0] < count[1] < 5e6
    with torch.device("meta"):
        assert load_backbone("llama-omni", scale="gpu").llm.config.num_hidden_layers == 12
        assert load_backbone("llama-omni", scale="full").config == LlamaOmniConfig()
    published = load_backbone("llama-omni", scale="full", weights=folder)
    assert isinstance(published, LlamaOmni) and published.config.unit_vocab_size == 50
    with pytest.raises(ValueError, match="no backbone 'lama'; there is llama-omni"):
        load_backbone("lama")
    with pytest.raises(ValueError, match="no scale 'huge'"):
        load_backbone("llama-omni", scale="huge")


def test_configurations_that_cannot_be_are_refused() -> None:
    for match, fields in {
        "ctc_decoder_config must read": {"ctc_decoder_config": "2,64"},
        "width / heads": {"ctc_decoder_config": "(2,60,7,64)"},
        "'conv'.*only 'linear'": {"speech_projector_type": "conv"},
        "rope type 'dynamic'": {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
        "not a multiple of": {"speech_encoder_heads": 3},
        "speech_generator_window": {"speech_generator_window": 0},
        "no field \\['hiden_size'\\]": {"hiden_size": 3},
    }.items():
        with pytest.raises(ValueError, match=match):
            LlamaOmniConfig.tiny(**fields)


def test_one_seed_is_one_model_and_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    one, same, other = LlamaOmni.tiny(seed=1), LlamaOmni.tiny(seed=1), LlamaOmni.tiny(seed=2)
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.llm.lm_head.weight, other.llm.lm_head.weight)
