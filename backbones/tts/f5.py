"""F5-TTS as an engine: flow matching that continues a recording of the voice, one sentence at a time."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import yaml

from backbones.tts.interface import PAUSE_S, SAMPLE_RATE_HZ, SentenceEngine, Unreadable, file_in, fingerprint

MODEL_FILE, CONFIG_FILE, VOCABULARY_FILE = "model.safetensors", "config.yaml", "vocab.txt"
VOCODER_FOLDER, VOCODER_FILES = "vocos", ("config.yaml", "pytorch_model.bin")
REFERENCE_AUDIO_FILE, REFERENCE_TEXT_FILE = "reference.wav", "reference.txt"

LONGEST_REFERENCE_S = 12.0
_LONGEST_TOTAL_S = 22.0  # reference and sentence together, as the package's own command line cuts long texts
_LEAST_LIMIT_CHARACTERS = 20


class F5Engine(SentenceEngine):
    """A voice of F5-TTS, from files alone; `seed` starts the noise of every sentence anew.

    folder: `model.safetensors`, `vocos/` (its config.yaml and pytorch_model.bin), as published; `reference.wav`, a
    recording of the voice of at most 12 s, and `reference.txt`, what it says; `config.yaml` (in the package's form) and
    `vocab.txt` where the weights are not F5TTS_v1_Base. steps: of the flow; more are slower and cleaner. device: of
    torch, None for a GPU where there is one. Raises ValueError for what is missing or does not fit.
    """

    name = "f5"

    def __init__(
        self,
        *,
        folder: Path,
        model: str = "F5TTS_v1_Base",
        language: str = "en",
        steps: int = 32,
        guidance: float = 2.0,
        speed: float = 1.0,
        seed: int = 0,
        device: str | None = None,
        unreadable: Unreadable = "refuse",
        pause_s: float = PAUSE_S,
    ) -> None:
        weights = file_in(folder, MODEL_FILE, engine=self.name)
        vocoder = [file_in(folder / VOCODER_FOLDER, name, engine=self.name) for name in VOCODER_FILES]
        reference = file_in(folder, REFERENCE_AUDIO_FILE, engine=self.name)
        text = file_in(folder, REFERENCE_TEXT_FILE, engine=self.name).read_text(encoding="utf-8")
        self._reference_text = _with_stop(" ".join(text.split()), folder / REFERENCE_TEXT_FILE)
        self._reference = _reference_audio(reference)
        reference_s = self._reference[0].shape[-1] / self._reference[1]
        characters = int(len(self._reference_text) / reference_s * (_LONGEST_TOTAL_S - reference_s) * speed)
        super().__init__(language, unreadable, pause_s, max(_LEAST_LIMIT_CHARACTERS, characters), spells_numbers=True)
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._seed = seed
        self._options: dict[str, Any] = {"nfe_step": steps, "cfg_strength": guidance, "speed": speed}
        with torch.random.fork_rng():  # initial weights are drawn before they are replaced
            self._model, self._vocoder, self._mel_kind = _loaded(folder, model, self._device)
        self.voice = (
            f"f5 {model}, files {fingerprint(weights, *vocoder, reference)}, {steps} steps, guidance {guidance}, "
            f"speed {speed}, seed {seed}"
        )

    def _samples(self, words: str) -> np.ndarray:
        from f5_tts.infer.utils_infer import infer_batch_process

        with torch.random.fork_rng():
            torch.manual_seed(self._seed)
            # One sentence in a batch of one: long texts are cut by `sentences`, so nothing is cross-faded.
            speech, rate_hz, _ = next(
                infer_batch_process(
                    self._reference,
                    self._reference_text,
                    [words],
                    self._model,
                    self._vocoder,
                    mel_spec_type=self._mel_kind,
                    progress=None,
                    device=self._device,
                    **self._options,
                )
            )
        assert rate_hz == SAMPLE_RATE_HZ
        return np.clip(speech, -1, 1).astype(np.float32)


def _loaded(folder: Path, model: str, device: str) -> tuple[torch.nn.Module, torch.nn.Module, str]:
    import f5_tts.model
    from f5_tts.infer.utils_infer import load_model, load_vocoder

    path = folder / CONFIG_FILE
    if not path.is_file():
        path = Path(str(files("f5_tts").joinpath(f"configs/{model}.yaml")))
    if not path.is_file():
        known = ", ".join(sorted(known.stem for known in path.parent.glob("*.yaml")))
        raise ValueError(f"f5-tts has no configuration {model!r}; it has {known}")
    vocabulary = folder / VOCABULARY_FILE
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))["model"]
        mel_kind, backbone, sizes = config["mel_spec"]["mel_spec_type"], config["backbone"], config["arch"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is no configuration of f5-tts: it lacks model.{error}") from error
    if mel_kind != "vocos":
        raise ValueError(f"{path} asks for the vocoder {mel_kind!r}; weights made with vocos can be used")
    try:
        vocoder = load_vocoder(mel_kind, is_local=True, local_path=str(folder / VOCODER_FOLDER), device=device)
        loaded = load_model(
            getattr(f5_tts.model, backbone),
            sizes,
            str(folder / MODEL_FILE),
            mel_spec_type=mel_kind,
            vocab_file=str(vocabulary) if vocabulary.is_file() else "",
            device=device,
        )
    except (AttributeError, RuntimeError, TypeError) as error:
        raise ValueError(
            f"the weights in {folder} do not fit {path} ({error}); put the right one beside them"
        ) from error
    return loaded, vocoder, mel_kind


def _reference_audio(path: Path) -> tuple[torch.Tensor, int]:
    samples, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
    duration_s = len(samples) / rate_hz
    if not 1.0 <= duration_s <= LONGEST_REFERENCE_S:
        raise ValueError(f"{path} is {duration_s:.1f} s long; a voice is given by 1 to {LONGEST_REFERENCE_S:.0f} s")
    return torch.from_numpy(samples.T.copy()), rate_hz


def _with_stop(text: str, path: Path) -> str:
    if not text:
        raise ValueError(f"{path} is empty; it must hold what {REFERENCE_AUDIO_FILE} says")
    return text + (" " if text.endswith((".", "!", "?")) else ". ")
