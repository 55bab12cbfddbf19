"""A Qwen + Mimi on disk: `config.json`, `model.safetensors`, what is mounted, and Mimi beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from backbones.config_file import read_config_file
from backbones.mounting import mount
from backbones.mounting.config import MountedConfigFields
from backbones.mounting.decoder import MountedDecoder
from backbones.mounting.tensor_file import require_shapes
from backbones.qwen_mimi.config import QwenMimiConfig
from backbones.qwen_mimi.model import QwenMimi
from backbones.speech.mimi import MimiTokenizer
from ttt_core import TTTConfig

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
MIMI_FOLDER = "mimi"
MOUNTING = "mounting"
MOUNTING_FIELDS = tuple(MountedConfigFields.__dataclass_fields__)


def save(model: QwenMimi, folder: str | Path) -> None:
    """Writes the model, and what is mounted on its decoder, to `folder`; each file is moved there when it is whole."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    partial = folder / f"{WEIGHTS_FILE}.partial"
    save_file(tensors, partial)
    os.replace(partial, folder / WEIGHTS_FILE)
    partial = folder / f"{CONFIG_FILE}.partial"
    content = {**model.config.as_dict(), MOUNTING: _mounting(model)}
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, folder / CONFIG_FILE)


def load(folder: str | Path, dtype: torch.dtype = torch.float32) -> QwenMimi:
    """The model that `save` wrote, mounted as it was, in eval mode on the CPU, with the Mimi in the folder's `mimi/`.

    A Mimi is put there by hand, in transformers' format; without one the model has none. Raises ValueError, naming the
    file, where one is missing, unreadable, of another kind, or lacks a tensor.
    """
    folder = Path(folder)
    path = folder / WEIGHTS_FILE
    content = read_config_file(folder / CONFIG_FILE)
    mounting = content.pop(MOUNTING, None)
    config = QwenMimiConfig.from_dict(content, str(folder / CONFIG_FILE))
    if not path.is_file():
        raise ValueError(f"there is no weights file {path}; a model folder holds {CONFIG_FILE} and it")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is no readable safetensors file ({error}); it may be cut short") from error
    with torch.random.fork_rng(devices=[]):  # whoever loads draws what they would have drawn
        model = QwenMimi(config).to(dtype)
        if mounting is not None:
            _mount(model, mounting, folder / CONFIG_FILE)
    require_shapes(path, tensors, {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()})
    model.load_state_dict(tensors)
    if (folder / MIMI_FOLDER).is_dir():
        model.attach_mimi(MimiTokenizer.from_folder(folder / MIMI_FOLDER, config.codebooks))
    return model.eval()


def _mounting(model: QwenMimi) -> dict[str, Any] | None:
    if not isinstance(model.decoder, MountedDecoder):
        return None
    return {name: getattr(model.decoder.config, name) for name in MOUNTING_FIELDS}


def _mount(model: QwenMimi, mounting: object, origin: Path) -> None:
    if not isinstance(mounting, Mapping) or set(mounting) != set(MOUNTING_FIELDS):
        raise ValueError(f"{origin}: {MOUNTING!r} must be null or hold {', '.join(MOUNTING_FIELDS)}; got {mounting!r}")
    ttt = mounting["ttt_config"]
    windows = {int(layer): positions for layer, positions in mounting["attention_windows"].items()}
    mount(
        model.decoder, layers=mounting["ttt_layers"], config=None if ttt is None else TTTConfig(**ttt),
        mode=mounting["ttt_mode"], window=windows or None, sinks=mounting["attention_sinks"],
    )  # fmt: skip
