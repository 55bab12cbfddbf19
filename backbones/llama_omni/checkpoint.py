"""The published checkpoint format, key by key: `config.json` and `model.safetensors` (whole or in shards).

| in the file | in the model |
| --- | --- |
| `model.speech_encoder.*`, `model.speech_projector.*` | `speech_encoder.*`, `speech_projector.*` |
| `model.*`, `lm_head.*` | `llm.model.*`, `llm.lm_head.*` |
| `speech_generator.*` | `speech_generator.*` |

A folder may lack the speech encoder, as the release keeps whisper in a file of its own (`large-v3.pt`).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from backbones.llama_omni.config import LlamaOmniConfig

if TYPE_CHECKING:
    from backbones.llama_omni.model import LlamaOmni

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
ENCODER_PREFIX = "model.speech_encoder."
MOST_KEYS_NAMED = 8


def published_key(key: str) -> str:
    """The published name of a parameter or buffer of `LlamaOmni`."""
    if key.startswith("llm."):
        return key.removeprefix("llm.")
    return key if key.startswith("speech_generator.") else f"model.{key}"


def load_llama_omni(
    model_class: type[LlamaOmni],
    folder: str | Path,
    dtype: torch.dtype | None = None,
    *,
    speech_encoder_path: str | Path | None = None,
    attn_implementation: str = "sdpa",
) -> LlamaOmni:
    """A model from a folder in the published format, in `dtype` (default: that of the stored embeddings).

    `speech_encoder_path`: a whisper `.pt` file whose encoder is used instead of the folder's; needed where the folder
    holds none. `ttt.safetensors`, where the folder holds it, belongs to `backbones.mounting` and is not read here.
    Raises ValueError that names missing, unknown or wrongly shaped tensors.
    """
    folder = Path(folder)
    published = _read_json(folder / CONFIG_FILE)
    tensors = _read_weights(folder)
    if speech_encoder_path is not None:
        tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith(ENCODER_PREFIX)}
        encoder, heads = _read_whisper_encoder(Path(speech_encoder_path))
        tensors |= encoder
        published = {**published, "speech_encoder_heads": heads}
    elif not any(key.startswith(ENCODER_PREFIX) for key in tensors):
        raise ValueError(
            f"{folder} holds no speech encoder ({ENCODER_PREFIX}*); give the whisper file it was trained with as "
            f"speech_encoder_path (its config.json says {published.get('speech_encoder')!r})"
        )
    config = _with_dimensions_of(LlamaOmniConfig.from_published(published), tensors)
    if dtype is None and "model.embed_tokens.weight" in tensors:
        dtype = tensors["model.embed_tokens.weight"].dtype
    with torch.device("meta"):
        model = model_class(config, attn_implementation)
    names = {published_key(key): key for key in model.state_dict()}
    if config.tie_word_embeddings and "model.embed_tokens.weight" in tensors:
        tensors.setdefault("lm_head.weight", tensors["model.embed_tokens.weight"])
    _check(folder, tensors, {name: model.state_dict()[key].shape for name, key in names.items()})
    model.load_state_dict({names[name]: tensor.to(dtype) for name, tensor in tensors.items()}, assign=True)
    model.llm.tie_weights()
    return _materialise_rotary(model)


def save_llama_omni(model: LlamaOmni, folder: str | Path, max_shard_bytes: int = 5 * 1024**3) -> None:
    """Writes `config.json` and the weights to `folder` in the published format, in shards of at most the given size.

    Files appear whole or not at all: each is written beside its place and then moved. Raises ValueError for a model
    with parts the format has no names for (a mounted one: save its difference with `backbones.mounting.save_ttt`).
    """
    if max_shard_bytes < 1:
        raise ValueError(f"max_shard_bytes must be at least 1, got {max_shard_bytes}")
    folder = Path(folder)
    tensors = {published_key(key): tensor.detach().contiguous() for key, tensor in model.state_dict().items()}
    with torch.device("meta"):
        plain = type(model)(model.config)
    shapes = {published_key(key): tensor.shape for key, tensor in plain.state_dict().items()}
    try:
        _check(folder, tensors, shapes)
    except ValueError as error:
        raise ValueError(
            "the model has been changed since it was built, so the published format cannot hold it; save a mounted "
            f"model's difference with backbones.mounting.save_ttt ({error})"
        ) from error
    if model.config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    folder.mkdir(parents=True, exist_ok=True)
    shards = _shards(tensors, max_shard_bytes)
    file_names = [WEIGHTS_FILE]
    if len(shards) > 1:
        file_names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    for file_name, keys in zip(file_names, shards, strict=True):
        _write_whole(folder / file_name, {key: tensors[key] for key in keys})
    if len(shards) > 1:
        weight_map = {key: name for name, keys in zip(file_names, shards, strict=True) for key in keys}
        total = sum(_nbytes(tensor) for tensor in tensors.values())
        _write_json(folder / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map})
    dtype = str(model.llm.get_input_embeddings().weight.dtype).removeprefix("torch.")
    _write_json(folder / CONFIG_FILE, {**model.config.to_published(), "torch_dtype": dtype})
    # An earlier save in the other layout would leave two sets of weights to choose from.
    for stale in folder.glob("model*.safetensors*"):
        if stale.name not in (*file_names, *([INDEX_FILE] if len(shards) > 1 else [])):
            stale.unlink()


def _with_dimensions_of(config: LlamaOmniConfig, tensors: Mapping[str, Tensor]) -> LlamaOmniConfig:
    """The config with what the published one leaves to the weights: the encoder's and the projector's sizes."""
    sizes: dict[str, int] = {}
    places = {
        "speech_encoder_mel_bins": (ENCODER_PREFIX + "conv1.weight", 1),
        "speech_encoder_context": (ENCODER_PREFIX + "positional_embedding", 0),
        "speech_projector_hidden_size": ("model.speech_projector.linear1.weight", 0),
    }
    for name, (key, axis) in places.items():
        if key not in tensors:
            raise ValueError(f"the checkpoint lacks {key!r}")
        sizes[name] = tensors[key].shape[axis]
    blocks = {int(m[1]) for m in (re.match(re.escape(ENCODER_PREFIX) + r"blocks\.(\d+)\.", k) for k in tensors) if m}
    return replace(config, speech_encoder_layers=max(blocks, default=-1) + 1, **sizes)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path} does not exist; a checkpoint folder holds {CONFIG_FILE} and {WEIGHTS_FILE}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def _read_weights(folder: Path) -> dict[str, Tensor]:
    if (folder / WEIGHTS_FILE).is_file():
        return _read_safetensors(folder / WEIGHTS_FILE)
    if not (folder / INDEX_FILE).is_file():
        raise ValueError(f"{folder} holds neither {WEIGHTS_FILE} nor {INDEX_FILE}")
    weight_map: dict[str, str] = _read_json(folder / INDEX_FILE)["weight_map"]
    tensors: dict[str, Tensor] = {}
    for file_name in sorted(set(weight_map.values())):
        tensors |= _read_safetensors(folder / file_name)
    lost = sorted(set(weight_map) - set(tensors))
    if lost:
        raise ValueError(f"{folder / INDEX_FILE} lists tensors that no shard holds: {_named(lost)}")
    return tensors


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ValueError(f"the weights file {path} does not exist")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error


def _read_whisper_encoder(path: Path) -> tuple[dict[str, Tensor], int]:
    """The encoder's tensors under their published names, and its number of attention heads."""
    if not path.is_file():
        raise ValueError(f"the speech encoder file {path} does not exist")
    content = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, dict) or not {"dims", "model_state_dict"} <= set(content):
        raise ValueError(f"{path} is not a whisper file: expected a dict with 'dims' and 'model_state_dict'")
    encoder = {
        ENCODER_PREFIX + key.removeprefix("encoder."): tensor
        for key, tensor in content["model_state_dict"].items()
        if key.startswith("encoder.")
    }
    return encoder, content["dims"]["n_audio_head"]


def _check(where: Path, tensors: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> None:
    problems = []
    missing, unknown = sorted(set(shapes) - set(tensors)), sorted(set(tensors) - set(shapes))
    if missing:
        problems.append(f"missing {_named(missing)}")
    if unknown:
        problems.append(f"unknown {_named(unknown)}")
    wrong = [
        f"{key} is {tuple(tensors[key].shape)}, expected {tuple(shapes[key])}"
        for key in sorted(set(shapes) & set(tensors))
        if tensors[key].shape != shapes[key]
    ]
    if wrong:
        problems.append(f"wrong shapes: {_named(wrong)}")
    if problems:
        raise ValueError(f"{where} does not fit its {CONFIG_FILE}: " + "; ".join(problems))


def _named(names: list[str]) -> str:
    more = len(names) - MOST_KEYS_NAMED
    return ", ".join(names[:MOST_KEYS_NAMED]) + (f" and {more} more" if more > 0 else "")


def _materialise_rotary(model: LlamaOmni) -> LlamaOmni:
    """Gives the rotary frequencies, which no file stores, their values: everything else is off the meta device."""
    model.llm.model.rotary_emb = type(model.llm.model.rotary_emb)(model.llm.config)
    left = [name for name, tensor in [*model.named_parameters(), *model.named_buffers()] if tensor.is_meta]
    assert not left, left
    return model


def _shards(tensors: Mapping[str, Tensor], most_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = []
    size = 0
    for key in sorted(tensors):
        if not shards or size + _nbytes(tensors[key]) > most_bytes:
            shards.append([])
            size = 0
        shards[-1].append(key)
        size += _nbytes(tensors[key])
    return shards


def _nbytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _write_whole(path: Path, tensors: dict[str, Tensor]) -> None:
    beside = path.with_name(path.name + ".partial")
    save_file(tensors, beside, metadata={"format": "pt"})
    os.replace(beside, path)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    beside = path.with_name(path.name + ".partial")
    beside.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(beside, path)
