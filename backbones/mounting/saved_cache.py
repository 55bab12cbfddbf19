"""A conversation on disk: everything a MountedCache holds, so that another process continues where this one stopped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import mode
from typing import Any

import torch
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
from backbones.mounting.tensor_file import Shape, TensorFile, differences_from, require_shapes
from backbones.mounting.window import WindowMemory
from ttt_core import TTTState
from ttt_core.config import completed_state_identity


def _completed(identity: dict[str, Any]) -> dict[str, Any]:
    """An identity read from a file, with what those written before there were precision policies do not say."""
    ttt = identity.get("ttt")
    return identity | {"ttt": completed_state_identity(ttt)} if isinstance(ttt, dict) else identity


FILE = TensorFile(
    format="mounted_cache", version=1, content="conversation", writer="save_cache", completed_identity=_completed
)


def save_cache(cache: MountedCache, path: str | Path, model: nn.Module) -> None:
    """Write the TTT states, windows and keys of all rows (safetensors), with the config of the model they belong to.

    Raises ValueError when the cache is empty or another model's, or the path's folder does not exist.
    """
    tensors = cache_tensors(cache)
    if not tensors:
        raise ValueError("the cache is empty: no token has gone through it, so there is nothing to save")
    tokens_seen = cache.get_seq_length()
    if faults := differences_from(_expected_shapes(model, _rows(tensors), tokens_seen), tensors):
        raise ValueError(f"the cache {'; '.join(faults)}: save it with the model that it was filled by")
    FILE.write(path, tensors, _identity(model), facts={"tokens_seen": str(tokens_seen)})


def load_cache(path: str | Path, model: nn.Module) -> MountedCache:
    """The cache that `save_cache` wrote, on the model's device, ready to be passed as `past_key_values`.

    Raises ValueError when the file is missing, unreadable or damaged, or belongs to a model mounted otherwise.
    """
    path = Path(path)
    metadata, tensors = FILE.read(path, _identity(model))
    tokens_seen = _tokens_seen(path, metadata)
    require_shapes(path, tensors, _expected_shapes(model, _rows(tensors), tokens_seen))
    return filled_cache(tensors, tokens_seen, model)


def cache_tensors(cache: MountedCache) -> dict[str, Tensor]:
    """{name: tensor} of everything that a cache holds of its rows; `filled_cache` takes it back."""
    tensors: dict[str, Tensor] = {}
    for index, layer in enumerate(cache.layers):
        prefix = f"layers.{index}"
        if isinstance(layer, HoldsTTTState) and layer.state is not None:
            tensors |= {f"{prefix}.ttt.{name}": tensor for name, tensor in layer.state.row_tensors().items()}
        if isinstance(layer, WindowCacheLayer) and layer.memory is not None:
            tensors |= {f"{prefix}.window.{name}": tensor for name, tensor in layer.memory.tensors.items()}
        elif layer.keys is not None and layer.values is not None:
            tensors |= {f"{prefix}.attention.keys": layer.keys, f"{prefix}.attention.values": layer.values}
    return tensors


def filled_cache(tensors: Mapping[str, Tensor], tokens_seen: int, model: nn.Module) -> MountedCache:
    """The cache of a mounted model, on its device, that holds what `cache_tensors` gave of `tokens_seen` columns."""
    device = next(model.parameters()).device
    cache, ttt = model_cache(model), ttt_layers(model)

    def part(prefix: str) -> dict[str, Tensor]:
        return {n.removeprefix(prefix): tensor.to(device) for n, tensor in tensors.items() if n.startswith(prefix)}

    for index, layer in enumerate(cache.layers):
        if isinstance(layer, HoldsTTTState):
            held, mixer = part(f"layers.{index}.ttt."), ttt[index]
            # A reset goes back to the weights that this model has learned, not to those of the model that wrote it.
            layer.store(TTTState.from_row_tensors(held, mixer.inner.weights, mixer.config))
        if isinstance(layer, WindowCacheLayer):
            layer.remember(WindowMemory(**part(f"layers.{index}.window.")), tokens_seen)
        elif isinstance(layer, TTTCacheLayer):
            layer.advance(tokens_seen)
        elif isinstance(layer, (FullAttentionCacheLayer, SlidingAttentionCacheLayer)):
            kept = part(f"layers.{index}.attention.")
            layer.update(kept["keys"], kept["values"])
            if isinstance(layer, SlidingAttentionCacheLayer):
                layer.cumulative_length = tokens_seen
    return cache


def _tokens_seen(path: Path, metadata: dict[str, str]) -> int:
    told = metadata.get("tokens_seen", "")
    if not told.isdecimal() or int(told) < 1:
        raise ValueError(
            f"{path} is damaged: tokens_seen in its metadata is {metadata.get('tokens_seen')!r}, expected a whole "
            "number of at least 1; save it again with save_cache"
        )
    return int(told)


def _rows(tensors: dict[str, Tensor]) -> int:
    """Rows that most tensors have, so that a damaged one is told from the others."""
    return mode(tensor.shape[0] if tensor.dim() else 0 for tensor in tensors.values()) if tensors else 0


def _expected_shapes(model: nn.Module, rows: int, tokens_seen: int) -> dict[str, Shape]:
    """{name: shape} of all that a conversation of so many rows and tokens leaves in a cache of this model."""
    decoder, ttt = mounted_decoder(model), ttt_layers(model)
    config: Any = decoder.config
    shapes: dict[str, Shape] = {}
    for index, layer in enumerate(model_cache(model).layers):
        prefix = f"layers.{index}"
        if isinstance(layer, HoldsTTTState):
            one_row = ttt[index].initial_state(1).row_tensors()
            shapes |= {f"{prefix}.ttt.{name}": (rows, *tensor.shape[1:]) for name, tensor in one_row.items()}
        if isinstance(layer, TTTCacheLayer):
            continue
        attention: Any = decoder.layers[index].self_attn
        heads = (rows, config.num_key_value_heads)
        if isinstance(layer, WindowCacheLayer):
            like = torch.empty(*heads, 0, attention.head_dim, device="meta")
            memory = WindowMemory.empty(like, attention.window, attention.sinks)
            shapes |= {f"{prefix}.window.{name}": tuple(tensor.shape) for name, tensor in memory.tensors.items()}
            continue
        # A sliding layer keeps one position less than it sees: the newest one comes with the call that needs it.
        is_sliding = isinstance(layer, SlidingAttentionCacheLayer)
        kept = min(tokens_seen, layer.sliding_window - 1) if is_sliding else tokens_seen
        shapes |= {f"{prefix}.attention.{name}": (*heads, kept, attention.head_dim) for name in ("keys", "values")}
    return shapes


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
