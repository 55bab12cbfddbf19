"""Pocket TTS: the real package loads a tiny checkpoint of random weights in its own format, and speaks with it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from safetensors.torch import save_file

from backbones.tts import load_engine, speak_to_disk

pocket_tts = pytest.importorskip("pocket_tts", reason="needs pocket-tts; runs where `make setup` was")

CHARACTERS = "\u2581abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,!?';:-"
TEXT = "Hello there. How are you?"


def _write_tokenizer(path: Path) -> int:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {character: index for index, character in enumerate([*CHARACTERS, "<unk>"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer.save(str(path))
    return len(vocabulary)


def _tiny_config(folder: Path) -> dict:
    """The package's smallest configuration with every width cut down, 19,000 weights in all."""
    from pocket_tts.utils.config import CONFIGS_DIR

    config = yaml.safe_load((CONFIGS_DIR / "english_2m_2026-10.yaml").read_text(encoding="utf-8"))
    config |= {"weights_path": None, "weights_path_without_voice_cloning": None}
    flow_lm, mimi = config["flow_lm"], config["mimi"]
    flow_lm["lookup_table"] |= {"n_bins": _write_tokenizer(folder / "tokenizer.json"), "tokenizer": "tokenizers"}
    flow_lm["lookup_table"] |= {"tokenizer_path": str(folder / "tokenizer.json"), "dim": 16, "rank": 8}
    flow_lm["transformer"] |= {"d_model": 16, "num_heads": 2, "num_layers": 1, "attn_dim": 16, "dim_feedforward": 16}
    flow_lm["flow"] |= {"dim": 16, "depth": 1}
    flow_lm["z_dim"] = 16
    small = {"d_model": 16, "num_heads": 2, "num_layers": 1, "dim_feedforward": 16}
    for transformer in (mimi["transformer"], mimi["decoder_transformer"]):
        transformer |= small | {"input_dimension": 16, "output_dimensions": [16]}
    for convolutions in (mimi["seanet"], mimi["decoder_seanet"]):
        convolutions |= {"dimension": 16, "n_filters": 2}
    mimi |= {"inner_dim": 8, "outer_dim": 16, "quantizer": {"dimension": 8, "output_dimension": 16}}
    return config


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pocket")
    (folder / "config.yaml").write_text(yaml.safe_dump(_tiny_config(folder)), encoding="utf-8")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = pocket_tts.TTSModel.load_model(config=str(folder / "config.yaml"))
        save_file(
            {name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "model.safetensors"
        )
        voice = model.get_state_for_audio_prompt(0.1 * torch.randn(1, 12_000))
    pocket_tts.export_model_state(voice, folder / "voice.safetensors")
    return folder


def test_it_speaks_what_the_package_generates_and_a_sentence_always_sounds_the_same(folder: Path) -> None:
    threads, noise = torch.get_num_threads(), torch.get_rng_state()
    engine = load_engine("pocket", folder, seed=3, pause_s=0.1)
    hello, how = engine.speak(TEXT)
    assert torch.get_num_threads() == threads and torch.equal(torch.get_rng_state(), noise), "and leaves both alone"

    model = pocket_tts.TTSModel.load_model(config=str(_with_weights(folder)))
    torch.manual_seed(3)
    expected = model.generate_audio(model.get_state_for_audio_prompt(folder / "voice.safetensors"), "Hello there.")
    torch.set_rng_state(noise)
    assert hello.text == "Hello there." and len(expected) > 12_000
    assert np.array_equal(hello.samples[:-2400], expected.numpy())
    assert np.array_equal(engine.say("How are you?").samples, how.samples)
    assert not np.array_equal(load_engine("pocket", folder, seed=4).say("Hello there.").samples[:9600], expected[:9600])


def _with_weights(folder: Path) -> Path:
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    path = folder / "with-weights.yaml"
    path.write_text(yaml.safe_dump(config | {"weights_path": str(folder / "model.safetensors")}), encoding="utf-8")
    return path


def test_a_recording_serves_as_voice_and_speech_goes_to_disk(folder: Path, tmp_path: Path) -> None:
    cloned = tmp_path / "cloned"
    shutil.copytree(folder, cloned)
    (cloned / "voice.safetensors").unlink()
    soundfile.write(cloned / "voice.wav", 0.1 * np.sin(np.arange(16_000) / 20), 16_000)
    engine = load_engine("pocket", cloned)
    assert engine.voice != load_engine("pocket", folder).voice
    speech = speak_to_disk(engine, TEXT, tmp_path / "speech")
    assert speech.sentences == 2 and speech.duration_s > 1


@pytest.mark.parametrize("missing", ["model.safetensors", "tokenizer.json", "voice.safetensors"])
def test_a_folder_without_a_file_is_refused_by_its_name(folder: Path, tmp_path: Path, missing: str) -> None:
    for file in folder.iterdir():
        if file.name != missing:
            (tmp_path / file.name).symlink_to(file)
    with pytest.raises(ValueError, match=f"needs .*{missing}.* in {tmp_path}; it is not there"):
        load_engine("pocket", tmp_path)


def test_weights_of_another_configuration_are_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    config["flow_lm"]["flow"]["depth"] = 2
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    with pytest.raises(ValueError, match="does not fit its configuration"):
        load_engine("pocket", tmp_path)
    (tmp_path / "config.yaml").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="no configuration of pocket-tts"):
        load_engine("pocket", tmp_path)
    (tmp_path / "config.yaml").unlink()
    with pytest.raises(ValueError, match=r"no configuration 'klingon'; it has dutch, .*english_2026-10"):
        load_engine("pocket", tmp_path, model="klingon")
