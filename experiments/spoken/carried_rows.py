"""Pieces of long conversations as training batches: every row goes on from what its piece before left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import Cache

from backbones.mounting import MountedCache, cache_tensors, filled_cache
from ttt_core import TTTLayer, TTTState

Left = dict[str, Any]
"""What a piece leaves to the next: tensors by name, detached, and numbers. It is what a checkpoint holds."""


@dataclass(frozen=True)
class CarriedRows:
    """One piece a row, each a batch of its own: rows are of different lengths and ages, and padding one to the other
    would put padding in front of what it reads next. A piece is thousands of positions, so little is lost by it.

    begins: per row, whether it begins a conversation; else it goes on where the row's piece of the step before ended.
    """

    rows: tuple[Any, ...]
    begins: tuple[bool, ...]

    @property
    def positions(self) -> int:
        """Real positions of all rows together."""
        return sum(row.positions for row in self.rows)

    def to(self, device: torch.device) -> CarriedRows:
        return CarriedRows(tuple(row.to(device) for row in self.rows), self.begins)


def left_of_cache(cache: Cache) -> Left:
    """Everything that a cache of a decoder holds: TTT states, windows, keys and values."""
    if isinstance(cache, MountedCache):
        tensors = cache_tensors(cache)
    else:
        assert isinstance(cache, DynamicCache)
        tensors = {}
        for index, layer in enumerate(cache.layers):
            assert layer.keys is not None and layer.values is not None
            tensors |= {f"layers.{index}.keys": layer.keys, f"layers.{index}.values": layer.values}
    # Copies: a view would bring the whole tensor that it looks into, into memory and into every checkpoint.
    return {"seen": cache.get_seq_length(), **{name: tensor.detach().clone() for name, tensor in tensors.items()}}


def cache_left(left: Left, model: nn.Module, is_mounted: bool) -> Cache:
    """The cache of a decoder, on its device, that holds what `left_of_cache` gave."""
    tensors = {name: tensor for name, tensor in left.items() if name.startswith("layers.")}
    if is_mounted:
        return filled_cache(tensors, left["seen"], model)
    device = next(model.parameters()).device
    cache = DynamicCache(config=model.config)
    for index in range(len(tensors) // 2):
        keys, values = (tensors[f"layers.{index}.{name}"].to(device) for name in ("keys", "values"))
        cache.update(keys, values, index)
    return cache


def left_of_states(states: Mapping[int, TTTState]) -> Left:
    """{layer: TTT state} as a piece leaves them."""
    return {
        f"layers.{layer}.{name}": tensor.detach().clone()
        for layer, state in states.items()
        for name, tensor in state.row_tensors().items()
    }


def states_left(left: Left, layers: Mapping[int, TTTLayer]) -> dict[int, TTTState]:
    """The states of these layers that hold what `left_of_states` gave."""

    def of_layer(index: int, ttt: TTTLayer) -> TTTState:
        initial, prefix = ttt.initial_state(1), f"layers.{index}."
        device = initial.count.device
        held = {name.removeprefix(prefix): t.to(device) for name, t in left.items() if name.startswith(prefix)}
        return TTTState.from_row_tensors(held, initial.initial, ttt.config)

    return {index: of_layer(index, ttt) for index, ttt in layers.items()}


def with_lead(codes: Tensor, left: Left | None) -> tuple[Tensor, int]:
    """Codes (1, K, T) behind the last frames of the piece before, and how many frames those are."""
    if left is None:
        return codes, 0
    lead = left["lead"].to(codes.device)
    return torch.cat([lead, codes], dim=2), lead.shape[2]
