"""Qwen language models: random ones, and published folders read from local files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, PreTrainedModel

# Registers the model types of mounted models, so that what `save_pretrained` wrote of one is read as one.
from backbones.mounting.families import FAMILIES as _MOUNTED_FAMILIES
from backbones.qwen_tts.config import FAMILIES, QwenConfig
from backbones.qwen_tts.rotary import give_exact_rotary

CONFIG_FILE = "config.json"
_UNREADABLE = (OSError, RuntimeError, KeyError, TypeError, ValueError, SafetensorError, StrictDataclassError)
WEIGHT_FILES = ("*.safetensors", "pytorch_model*.bin")
_FAULTS = {
    "missing_keys": "lack", "unexpected_keys": "hold, and it knows no", "mismatched_keys": "hold in other shapes",
}  # fmt: skip
_MOUNTED = tuple(f"ttt_{family.name}" for family in _MOUNTED_FAMILIES if family.name in FAMILIES)


def random_llm(config: QwenConfig) -> PreTrainedModel:
    """The language model with random weights and exact rotary tables."""
    llm = AutoModelForCausalLM.from_config(config.llm_config())
    give_exact_rotary(llm)
    return llm


def read_llm(folder: Path, dtype: torch.dtype | None) -> PreTrainedModel:
    """The language model of a folder: a Qwen2 or a Qwen3, plain or as `save_checkpoint` wrote a mounted one.

    Its rotary tables are exact: see `rotary.py`.

    dtype: None is the one it was saved in. Raises ValueError for a folder that is none, lacks files, or holds another
    model or weights that are not all of it.
    """
    published = _read_config(folder)
    kind = published.get("model_type")
    if kind not in (*FAMILIES, *_MOUNTED):
        raise ValueError(f"{folder / CONFIG_FILE} is of model_type {kind!r}; a {' or '.join(FAMILIES)} is read here")
    if not any(any(folder.glob(pattern)) for pattern in WEIGHT_FILES):
        raise ValueError(f"{folder} holds no weights ({', '.join(WEIGHT_FILES)}); copy them there")
    try:
        llm, told = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype or "auto", local_files_only=True, output_loading_info=True
        )
    except _UNREADABLE as error:
        raise ValueError(f"the model in {folder} cannot be read: {error}; copy it there anew") from error
    _check_complete(folder, told)
    give_exact_rotary(llm)
    return llm


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    if not path.is_file():
        what = "holds no config.json" if folder.is_dir() else "is no folder"
        raise ValueError(f"{folder} {what}; give the folder of a published Qwen2, Qwen2.5 or Qwen3 text model")
    try:
        published = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}; copy it there anew") from error
    if not isinstance(published, dict):
        raise ValueError(f"{path} holds {type(published).__name__}, expected a JSON object")
    return published


def _check_complete(folder: Path, told: Mapping[str, Any]) -> None:
    """transformers only warns of tensors that a checkpoint lacks, and goes on with random ones."""
    faults = [
        f"{what} {', '.join(sorted(str(key) for key in told[list_name])[:5])}"
        for list_name, what in _FAULTS.items()
        if told[list_name]
    ]
    if faults:
        raise ValueError(f"the weights in {folder} do not fit its config.json: they {'; they '.join(faults)}")
