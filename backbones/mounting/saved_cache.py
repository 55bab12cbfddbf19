"""A conversation on disk: everything a MountedCache holds, so that another process continues where this one stopped."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from backbones.mounting.cache import (
    FullAttentionCacheLayer,
    HoldsTTTState,
    MountedCache,
    SlidingAttentionCacheLayer,
    TTTCacheLayer,
    WindowCacheLayer,
)
from backbones.mounting.config import read_ttt_config
from backbones.mounting.host import model_cache, mounted_decoder, ttt_layers
from backbones.mounting.window import WindowMemory
from ttt_core import InnerWeights, TTTLayer, TTTState

FORMAT = "mounted_cache"
VERSION = 1


def save_cache(cache: MountedCache, path: str | Path, model: nn.Module) -> None:
    """Write the TTT states, windows and keys of all rows (safetensors), with the config of the model they belong to."""
    tensors: dict[str, Tensor] = {}
    for index, layer in enumerate(cache.layers):
        prefix = f"layers.{index}"
        if isinstance(layer, HoldsTTTState) and layer.state is not None:
            tensors |= {f"{prefix}.ttt.{name}": tensor for name, tensor in _state_tensors(layer.state).items()}
        if isinstance(layer, WindowCacheLayer) and layer.memory is not None:
            tensors |= {f"{prefix}.window.{name}": tensor for name, tensor in layer.memory.tensors.items()}
        elif layer.keys is not None and layer.values is not None:
            tensors |= {f"{prefix}.attention.keys": layer.keys, f"{prefix}.attention.values": layer.values}
    if not tensors:
        raise ValueError("the cache is empty: no token has gone through it, so there is nothing to save")
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "config": json.dumps(_identity(model), sort_keys=True),
        "tokens_seen": str(cache.get_seq_length()),
    }
    # Copies: rows and layers may share storage, which the format refuses.
    own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    save_file(own, path, metadata=metadata)


def load_cache(path: str | Path, model: nn.Module) -> MountedCache:
    """The cache that `save_cache` wrote, on the model's device, ready to be passed as `past_key_values`.

    Raises ValueError when the file is missing or unreadable, or belongs to a model mounted otherwise.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no cache file {path}; write one with save_cache")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except SafetensorError as error:
        raise ValueError(f"{path} is no readable safetensors file ({error})") from error
    _require_same_identity(path, metadata, _identity(model))
    device = next(model.parameters()).device
    tokens_seen = int(metadata["tokens_seen"])
    cache, ttt = model_cache(model), ttt_layers(model)
    tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
    for index, layer in enumerate(cache.layers):
        prefix = f"layers.{index}"
        if isinstance(layer, HoldsTTTState):
            names = _state_tensors(ttt[index].initial_state(1)).keys()
            layer.store(_state_from(_part(path, tensors, f"{prefix}.ttt", names), ttt[index]))
        if isinstance(layer, WindowCacheLayer):
            names = [field.name for field in fields(WindowMemory)]
            layer.remember(WindowMemory(**_part(path, tensors, f"{prefix}.window", names)), tokens_seen)
        elif isinstance(layer, TTTCacheLayer):
            layer.advance(tokens_seen)
        elif isinstance(layer, (FullAttentionCacheLayer, SlidingAttentionCacheLayer)):
            kept = _part(path, tensors, f"{prefix}.attention", ("keys", "values"))
            layer.update(kept["keys"], kept["values"])
            if isinstance(layer, SlidingAttentionCacheLayer):
                layer.cumulative_length = tokens_seen
    return cache


def _part(path: Path, tensors: dict[str, Tensor], prefix: str, names: Iterable[str]) -> dict[str, Tensor]:
    missing = [f"{prefix}.{name}" for name in names if f"{prefix}.{name}" not in tensors]
    if missing:
        raise ValueError(f"{path} lacks the tensors {', '.join(missing)}: it was cut short or is of another model")
    return {name: tensors[f"{prefix}.{name}"] for name in names}


def _state_tensors(state: TTTState) -> dict[str, Tensor]:
    weights = {f"weights.{name}": t for name, t in zip(InnerWeights._fields, state.weights.tensors, strict=False)}
    sums = {f"sums.{name}": t for name, t in zip(InnerWeights._fields, state.sums.tensors, strict=False)}
    return weights | sums | {"count": state.count} | {f"conv.{name}": t for name, t in state.conv.items()}


def _state_from(tensors: dict[str, Tensor], layer: TTTLayer) -> TTTState:
    def weights(prefix: str) -> InnerWeights:
        names = [name for name in InnerWeights._fields if f"{prefix}.{name}" in tensors]
        return InnerWeights.from_tensors([tensors[f"{prefix}.{name}"] for name in names])

    conv = {name.removeprefix("conv."): tensor for name, tensor in tensors.items() if name.startswith("conv.")}
    # A reset goes back to the weights that this model has learned, not to those of the model that wrote the file.
    return TTTState(weights("weights"), weights("sums"), tensors["count"], conv, layer.inner.weights, layer.config)


def _identity(model: nn.Module) -> dict[str, Any]:
    config = mounted_decoder(model).config
    return {
        "layer_types": list(config.layer_types),
        "ttt_layers": list(config.ttt_layers),
        "windows": dict(config.attention_windows),
        "sinks": config.attention_sinks,
        "hidden_size": config.hidden_size,
        "key_value_heads": config.num_key_value_heads,
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "ttt": read_ttt_config(config).state_identity() if config.ttt_layers else None,
    }


def _require_same_identity(path: Path, metadata: dict[str, str], wanted: dict[str, Any]) -> None:
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} holds no conversation (format {metadata.get('format')!r}, expected {FORMAT!r})")
    if metadata.get("version") != str(VERSION):
        raise ValueError(f"{path} has version {metadata.get('version')}; this code reads version {VERSION}")
    saved = json.loads(metadata["config"])
    differing = [
        f"{name} is {saved.get(name)!r} there and {value!r} here"
        for name, value in wanted.items()
        if saved.get(name) != value
    ]
    if differing:
        raise ValueError(f"{path} was saved from a model mounted otherwise: {'; '.join(differing)}")
