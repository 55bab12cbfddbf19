"""Pocket TTS as an engine: Kyutai's 100-million-parameter model for CPUs, over the same codec family as Moshi's."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import yaml
from safetensors import SafetensorError

from backbones.tts.interface import PAUSE_S, SAMPLE_RATE_HZ, SentenceEngine, Unreadable, file_in, fingerprint
from backbones.tts.text import SENTENCE_LIMIT_CHARACTERS

if TYPE_CHECKING:
    from pocket_tts import TTSModel

MODEL_FILE, CONFIG_FILE = "model.safetensors", "config.yaml"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")
VOICE_FILES = ("voice.safetensors", "voice.wav")


class PocketEngine(SentenceEngine):
    """A voice of Pocket TTS, from files alone; `seed` starts the noise of each sentence, which so always sounds the same.

    folder: `model.safetensors`, `tokenizer.json` or `tokenizer.model`, `voice.safetensors` (a state that `pocket-tts
    export-voice` wrote) or `voice.wav` (a recording to clone; it needs the weights with voice cloning), as Kyutai
    publishes them; `config.yaml` where the weights are not those of the package's configuration `model`.
    temperature: of the noise, None for the model's own. Raises ValueError for what is missing or does not fit.
    """

    name = "pocket"

    def __init__(
        self,
        *,
        folder: Path,
        model: str = "english_2026-10",
        language: str = "en",
        temperature: float | None = None,
        seed: int = 0,
        unreadable: Unreadable = "refuse",
        pause_s: float = PAUSE_S,
        limit_characters: int = SENTENCE_LIMIT_CHARACTERS,
    ) -> None:
        super().__init__(language, unreadable, pause_s, limit_characters, spells_numbers=True)
        voice_file = file_in(folder, *VOICE_FILES, engine=self.name)
        self._seed = seed
        with torch.random.fork_rng(devices=[]):  # initial weights and the voice's prompt draw noise
            self._model = _loaded(folder, model, temperature)
            self._voice_state = self._model.get_state_for_audio_prompt(voice_file)
        weights = fingerprint(folder / MODEL_FILE, voice_file)
        self.voice = f"pocket {model}, files {weights}, temperature {self._model.temp}, seed {seed}"

    def _samples(self, words: str) -> np.ndarray:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed)
            speech = self._model.generate_audio(self._voice_state, words)
        return speech.clamp(-1, 1).numpy().astype(np.float32)


def _loaded(folder: Path, model: str, temperature: float | None) -> TTSModel:
    threads = torch.get_num_threads()
    from pocket_tts import TTSModel

    torch.set_num_threads(threads)  # importing the package sets one thread for the whole process
    config = _local_config(folder, model)
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
        yaml.safe_dump(config, file)
        file.flush()
        try:
            loaded = TTSModel.load_model(config=file.name, temp=temperature)
        except (RuntimeError, SafetensorError, AssertionError) as error:
            raise ValueError(
                f"{folder / MODEL_FILE} or its tokenizer does not fit its configuration ({error}); put the right "
                f"{CONFIG_FILE} beside it, or name the package's configuration that it was made with (model=...)"
            ) from error
    if loaded.sample_rate != SAMPLE_RATE_HZ:
        raise ValueError(f"the weights in {folder} speak at {loaded.sample_rate} Hz; engines speak at {SAMPLE_RATE_HZ}")
    return loaded


def _local_config(folder: Path, model: str) -> dict[str, Any]:
    """The configuration with every path to a file of the folder: nothing is ever downloaded."""
    from pocket_tts.utils.config import CONFIGS_DIR

    weights = file_in(folder, MODEL_FILE, engine=PocketEngine.name)
    tokenizer = file_in(folder, *TOKENIZER_FILES, engine=PocketEngine.name)
    path = folder / CONFIG_FILE
    if not path.is_file():
        path = CONFIGS_DIR / f"{model}.yaml"
        if not path.is_file():
            known = ", ".join(sorted(known.stem for known in CONFIGS_DIR.glob("*.yaml")))
            raise ValueError(f"pocket-tts has no configuration {model!r}; it has {known}")
    config: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    try:
        table = config["flow_lm"]["lookup_table"]
        config["flow_lm"]["weights_path"] = config["mimi"]["weights_path"] = None
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is no configuration of pocket-tts: it lacks flow_lm, its lookup_table or mimi"
        ) from error
    config |= {"weights_path": str(weights), "weights_path_without_voice_cloning": None}
    table |= {"tokenizer_path": str(tokenizer), "tokenizer": _kind(tokenizer)}
    return config


def _kind(tokenizer: Path) -> str:
    return "tokenizers" if tokenizer.suffix == ".json" else "sentencepiece"
