"""F5-TTS: the real package loads a tiny checkpoint of random weights in the published format, and speaks with it."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from safetensors.torch import save_file

from backbones.tts import load_engine

pytest.importorskip(
    "f5_tts", reason="needs the extra f5, which is not in the lock; runs where it was installed by hand"
)

VOCODER = {
    "feature_extractor": {
        "class_path": "vocos.feature_extractors.MelSpectrogramFeatures",
        "init_args": {"sample_rate": 24_000, "n_fft": 1024, "hop_length": 256, "n_mels": 100, "padding": "center"},
    },
    "backbone": {
        "class_path": "vocos.models.VocosBackbone",
        "init_args": {"input_channels": 100, "dim": 16, "intermediate_dim": 16, "num_layers": 1},
    },
    "head": {
        "class_path": "vocos.heads.ISTFTHead",
        "init_args": {"dim": 16, "n_fft": 1024, "hop_length": 256, "padding": "center"},
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from f5_tts.model import CFM, DiT
    from vocos import Vocos

    folder = tmp_path_factory.mktemp("f5")
    config = yaml.safe_load(Path(str(files("f5_tts").joinpath("configs/F5TTS_v1_Base.yaml"))).read_text())
    sizes = config["model"]["arch"]
    sizes |= {"dim": 32, "depth": 1, "heads": 2, "text_dim": 16, "conv_layers": 1}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    characters = " abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,!?'"
    (folder / "vocab.txt").write_text("".join(f"{character}\n" for character in characters))
    (folder / "vocos").mkdir()
    (folder / "vocos" / "config.yaml").write_text(yaml.safe_dump(VOCODER))
    spectrum = {
        "n_fft": 1024,
        "hop_length": 256,
        "win_length": 1024,
        "n_mel_channels": 100,
        "target_sample_rate": 24_000,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CFM(
            transformer=DiT(**sizes, text_num_embeds=len(characters), mel_dim=100),
            mel_spec_kwargs={**spectrum, "mel_spec_type": "vocos"},
        )
        for parameter in model.parameters():  # fresh output layers are zeros: they would say nothing of the text
            torch.nn.init.normal_(parameter, std=0.1)
        torch.save(
            Vocos.from_hparams(str(folder / "vocos/config.yaml")).state_dict(), folder / "vocos/pytorch_model.bin"
        )
    weights = {f"ema_model.{name}": tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors")
    soundfile.write(folder / "reference.wav", 0.1 * np.sin(np.arange(48_000) / 20), 24_000)
    (folder / "reference.txt").write_text("Hello, this is me\n")
    return folder


def test_it_speaks_and_a_sentence_sounds_the_same_again(folder: Path) -> None:
    noise = torch.get_rng_state()
    engine = load_engine("f5", folder, steps=4, device="cpu")
    hello, cost = engine.speak("Hello there my friend. It costs $5.50.")
    assert torch.equal(torch.get_rng_state(), noise), "and leaves the global noise alone"
    assert (hello.text, cost.text) == ("Hello there my friend.", "It costs $5.50.")
    # The package's rule: as many seconds per character as in the reference, 2 s for "Hello, this is me.  ".
    assert hello.duration_s - 0.25 == pytest.approx(2.0 * len(hello.text) / 20, abs=0.05)
    assert cost.duration_s > hello.duration_s, "five dollars, fifty cents is said in words"
    assert hello.samples.std() > 0.001
    assert np.array_equal(engine.say(hello.text).samples, hello.samples)
    other = load_engine("f5", folder, steps=4, device="cpu", seed=1).say(hello.text)
    assert not np.array_equal(other.samples, hello.samples)


def test_what_does_not_fit_is_refused(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["model"]["arch"]["depth"] = 2
    (tmp_path / "config.yaml").unlink()
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match=r"do not fit .*config\.yaml"):
        load_engine("f5", tmp_path, device="cpu")
    (tmp_path / "reference.wav").unlink()
    with pytest.raises(ValueError, match=r"needs reference\.wav in"):
        load_engine("f5", tmp_path)
    soundfile.write(tmp_path / "reference.wav", np.zeros(24_000 * 13), 24_000)
    with pytest.raises(ValueError, match=r"is 13\.0 s long; a voice is given by 1 to 12 s"):
        load_engine("f5", tmp_path)
