"""Files of a checkpoint, read with complaints that name file and key, and written all or none."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
ENCODER_PREFIX = "model.speech_encoder."
MOST_KEYS_NAMED = 8

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
DIMENSIONS_OF_SIZED_TENSORS = {
    ENCODER_PREFIX + "conv1.weight": 3,
    ENCODER_PREFIX + "positional_embedding": 2,
    "model.speech_projector.linear1.weight": 2,
}
"""Tensors whose shapes tell sizes of the model, and how many dimensions they have."""


def read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path} does not exist; a checkpoint folder holds {CONFIG_FILE} and {WEIGHTS_FILE}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got a {type(content).__name__}")
    return content


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Every tensor of the whole file, or of the shards that the index lists."""
    if (folder / WEIGHTS_FILE).is_file():
        return _read_safetensors(folder / WEIGHTS_FILE)
    if not (folder / INDEX_FILE).is_file():
        raise ValueError(f"{folder} holds neither {WEIGHTS_FILE} nor {INDEX_FILE}")
    weight_map = read_json(folder / INDEX_FILE).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise ValueError(f"{folder / INDEX_FILE} has no usable 'weight_map', which says what file holds each tensor")
    tensors: dict[str, Tensor] = {}
    for file_name in sorted(set(weight_map.values())):
        tensors |= _read_safetensors(folder / file_name)
    lost = sorted(set(weight_map) - set(tensors))
    if lost:
        raise ValueError(f"{folder / INDEX_FILE} lists tensors that no shard holds: {named(lost)}")
    return tensors


def read_whisper_encoder(path: Path) -> tuple[dict[str, Tensor], int]:
    """The encoder's tensors under their published names, and its number of attention heads."""
    if not path.is_file():
        raise ValueError(f"the speech encoder file {path} does not exist")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise ValueError(f"{path} is not a readable torch weights file: {error}") from error
    if not isinstance(content, dict) or not {"dims", "model_state_dict"} <= set(content):
        raise ValueError(f"{path} is not a whisper file: expected a dict with 'dims' and 'model_state_dict'")
    dims, weights = content["dims"], content["model_state_dict"]
    if not isinstance(dims, dict) or type(dims.get("n_audio_head")) is not int:
        raise ValueError(f"{path} is not a whisper file: its 'dims' must give 'n_audio_head', got {dims!r}")
    if not isinstance(weights, dict) or not all(isinstance(tensor, Tensor) for tensor in weights.values()):
        raise ValueError(f"{path} is not a whisper file: its 'model_state_dict' must hold tensors")
    encoder = {
        ENCODER_PREFIX + key.removeprefix("encoder."): tensor
        for key, tensor in weights.items()
        if key.startswith("encoder.")
    }
    _check_tensors(path, encoder)
    return encoder, dims["n_audio_head"]


def write_whole(folder: Path, writers: Mapping[str, Callable[[Path], None]]) -> None:
    """Writes the files called by `writers`, each beside its place, and moves them when all of them are written."""
    beside = {name: folder / (name + ".partial") for name in writers}
    try:
        for name, write in writers.items():
            write(beside[name])
        for name, path in beside.items():
            os.replace(path, folder / name)
    finally:
        for path in beside.values():
            path.unlink(missing_ok=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def named(names: list[str]) -> str:
    more = len(names) - MOST_KEYS_NAMED
    return ", ".join(names[:MOST_KEYS_NAMED]) + (f" and {more} more" if more > 0 else "")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ValueError(f"the weights file {path} does not exist")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
    _check_tensors(path, tensors)
    return tensors


def _check_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    wrong = [f"{key} is {tensor.dtype}" for key, tensor in sorted(tensors.items()) if tensor.dtype not in DTYPES]
    if wrong:
        raise ValueError(f"{path} holds numbers other than float16, bfloat16, float32, float64: {named(wrong)}")
    for key, dimensions in DIMENSIONS_OF_SIZED_TENSORS.items():
        if key in tensors and tensors[key].dim() != dimensions:
            raise ValueError(f"{path}: {key} must have {dimensions} dimensions, got shape {tuple(tensors[key].shape)}")
