"""Cache layers for TTT and windowed attention, and the cache that holds them.

Everything is rebound, never written in place: beams share rows, snapshots are free, and autograd flows through.
`tokens_seen` counts columns (padding included), as transformers counts; the states count each row's real tokens.
"""

from __future__ import annotations

import copy
from typing import Any, NoReturn

import torch
from torch import Tensor
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    StaticLayer,
)

from backbones.mounting.window import WindowMemory
from ttt_core import TTTState


class _BoundedLayer(CacheLayerMixin):
    """What the layers that keep no growing list of keys have in common."""

    is_compileable = False  # True would make generate() build 4-D masks, and the padding mask would be lost
    is_croppable = False
    is_sliding = False
    supports_early_init = False
    forgets_single_rows = True

    def __init__(self) -> None:
        super().__init__()
        self.tokens_seen = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to prepare: the first call brings its own sizes."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> NoReturn:
        raise ValueError(f"{self!r} takes no keys and values: the model's own attention ran on a mounted layer's cache")

    def get_seq_length(self) -> int:
        return self.tokens_seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.tokens_seen + query_length, 0

    def get_max_length(self) -> int:
        return -1

    def crop(self, tokens_to_remove: int) -> None:
        _refuse_to_give_back(tokens_to_remove)

    def activate_past_recording(self) -> NoReturn:
        raise ValueError(
            "assisted and prompt-lookup decoding undo tokens, and TTT or a bounded window cannot: "
            "generate without an assistant model"
        )


class WindowCacheLayer(_BoundedLayer):
    """The last `window` keys and values and the pinned sinks of one attention layer."""

    _layer_type = "window"

    def __init__(self) -> None:
        super().__init__()
        self.memory: WindowMemory | None = None

    def remember(self, memory: WindowMemory, columns: int) -> None:
        self.memory = memory
        self.tokens_seen += columns
        self.is_initialized = True

    def reset(self) -> None:
        self.memory, self.tokens_seen, self.is_initialized = None, 0, False

    def reset_rows(self, rows: Tensor) -> None:
        if self.memory is not None:
            self.memory = self.memory.reset(rows.to(self.memory.count.device))

    def select_rows(self, index: Tensor) -> None:
        if self.memory is not None:
            self.memory = self.memory.map(lambda tensor: tensor.index_select(0, index.to(tensor.device)))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.select_rows(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        self.select_rows(_as_index(indices))

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.memory is not None:
            self.memory = self.memory.map(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def detach(self) -> None:
        if self.memory is not None:
            self.memory = self.memory.map(Tensor.detach)

    @property
    def nbytes(self) -> int:
        return 0 if self.memory is None else self.memory.nbytes


class _AttentionKeys:
    """Row handling that transformers' growing layers lack, for the layers left as they were."""

    keys: Tensor | None
    values: Tensor | None
    forgets_single_rows = False  # one tensor holds the keys of all rows, and transformers' masks know one length

    def detach(self) -> None:
        if self.keys is not None and self.values is not None:
            self.keys, self.values = self.keys.detach(), self.values.detach()

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (self.keys, self.values) if t is not None)


class FullAttentionCacheLayer(_AttentionKeys, DynamicLayer):
    """All keys and values of one attention layer."""


class SlidingAttentionCacheLayer(_AttentionKeys, DynamicSlidingWindowLayer):
    """Keys and values of an attention that slides by its own design (Mistral's)."""

    def reset(self) -> None:
        super().reset()
        self.cumulative_length = 0


class HoldsTTTState:
    """A cache layer that also holds the TTT state of its layer. Mixed in before the attention's part, if any."""

    is_croppable = False
    state: TTTState | None = None
    keys: Tensor | None
    values: Tensor | None

    def crop(self, tokens_to_remove: int) -> None:
        _refuse_to_give_back(tokens_to_remove)

    def store(self, state: TTTState) -> None:
        self.state = state

    def reset(self) -> None:
        super().reset()  # type: ignore[misc]
        self.state = None

    def reset_rows(self, rows: Tensor) -> None:
        super().reset_rows(rows)  # type: ignore[misc]
        if self.state is not None:
            self.state = self.state.reset(rows.to(self.state.count.device))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)  # type: ignore[misc]
        self.state = None if self.state is None else self.state.select(beam_idx.to(self.state.count.device))

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)  # type: ignore[misc]
        self.state = None if self.state is None else self.state.select(_as_index(indices))

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)  # type: ignore[misc]
        self.state = None if self.state is None else self.state.repeat(repeats)

    def detach(self) -> None:
        super().detach()  # type: ignore[misc]
        self.state = None if self.state is None else self.state.detach()

    @property
    def nbytes(self) -> int:
        return super().nbytes + (0 if self.state is None else self.state.nbytes)  # type: ignore[misc]


class _NoAttention(_BoundedLayer):
    """The attention's part of a layer that has none left."""

    nbytes = 0

    def reset(self) -> None:
        self.tokens_seen, self.is_initialized = 0, False

    def reset_rows(self, rows: Tensor) -> None: ...
    def reorder_cache(self, beam_idx: Tensor) -> None: ...
    def batch_select_indices(self, indices: Tensor) -> None: ...
    def batch_repeat_interleave(self, repeats: int) -> None: ...
    def detach(self) -> None: ...


class TTTCacheLayer(HoldsTTTState, _NoAttention):
    """The TTT state of a layer whose attention TTT replaced."""

    _layer_type = "ttt"

    def advance(self, columns: int) -> None:
        self.tokens_seen += columns
        self.is_initialized = True


# Beside a gated TTT the attention keeps its own kind of memory. `_layer_type` names what a config may ask
# transformers to build; these three are only ever built here, from the mounted config.
class TTTFullAttentionCacheLayer(HoldsTTTState, FullAttentionCacheLayer): ...


class TTTSlidingAttentionCacheLayer(HoldsTTTState, SlidingAttentionCacheLayer): ...


class TTTWindowCacheLayer(HoldsTTTState, WindowCacheLayer):
    _layer_type = None


class _RefusedStaticLayer(StaticLayer):
    """Registered so that a static cache is refused by name instead of giving other tokens in silence."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise ValueError(
            "a mounted model has no static cache: its TTT states and windows are of fixed size already; "
            "leave cache_implementation unset, or pass model_cache(model)"
        )


class RefusedStaticTTT(_RefusedStaticLayer):
    _layer_type = "ttt"


class RefusedStaticWindow(_RefusedStaticLayer):
    _layer_type = "window"


class MountedCache(DynamicCache):
    """Cache of a mounted model. `cache[i]` is layer i's TTTState, or its (keys, values) where it has no TTT.

    Build one with `model_cache(model)`; generate() and a call without a cache build it themselves.
    """

    # Besides transformers' own methods, which are all its annotation knows, every layer has nbytes, detach and
    # forgets_single_rows, and reset_rows where that is true.
    layers: list[Any]

    def __init__(self, layers: list[Any]) -> None:
        Cache.__init__(self, layers=layers)

    def __getitem__(self, index: int) -> TTTState | tuple[Tensor, Tensor]:
        layer = self.layers[index]
        if isinstance(layer, HoldsTTTState):
            if layer.state is None:
                raise ValueError(f"layer {index} has no state yet: no token has gone through it")
            return layer.state
        if isinstance(layer, WindowCacheLayer) and layer.memory is not None:
            return layer.memory.keys, layer.memory.values
        if layer.keys is None or layer.values is None:
            raise ValueError(f"layer {index} has no keys yet: no token has gone through it")
        return layer.keys, layer.values

    @property
    def states(self) -> dict[int, TTTState]:
        """{layer: its TTT state} of the layers that have one by now."""
        held = ((index, layer.state) for index, layer in enumerate(self.layers) if isinstance(layer, HoldsTTTState))
        return {index: state for index, state in held if state is not None}

    @property
    def nbytes(self) -> int:
        """Bytes of everything the cache holds, all rows together."""
        return sum(layer.nbytes for layer in self.layers)

    def reset(self, rows: Tensor | list[int] | None = None) -> None:
        """Forget: everything (None), or the given rows (indices, or a (B,) bool mask) where a conversation ends.

        TTT goes back to its learned starting weights. After a reset of everything, the next call may bring any number
        of rows. Raises ValueError, with nothing forgotten, on rows that do not exist, and on single rows where a layer
        keeps all keys (full attention, Mistral's own sliding one): those forget all rows or none.
        """
        if rows is None:
            super().reset()
            return
        mask = self._row_mask(rows)
        unable = [index for index, layer in enumerate(self.layers) if not layer.forgets_single_rows]
        if not unable:
            for layer in self.layers:
                layer.reset_rows(mask)
        elif bool(mask.all()):
            super().reset()
        elif bool(mask.any()):
            raise ValueError(
                f"layers {unable} are attention without a window and cannot forget single rows: reset all rows, or "
                "mount with a window"
            )

    def crop(self, tokens_to_remove: int) -> None:
        """Give back tokens: only where every layer can, and never after some layers have."""
        if not self.is_croppable:
            _refuse_to_give_back(tokens_to_remove)
        super().crop(tokens_to_remove)

    def detach(self) -> MountedCache:
        """Cut everything held from the autograd graph (truncated backpropagation through time); returns itself."""
        for layer in self.layers:
            layer.detach()
        return self

    def snapshot(self) -> MountedCache:
        """An independent cache that continues from here. Tensors are shared: nothing is ever written in place."""
        return MountedCache([copy.copy(layer) for layer in self.layers])

    def _row_mask(self, rows: Tensor | list[int]) -> Tensor:
        """(B,) bool on the CPU of rows given as indices or as such a mask."""
        batch, given = self._rows(), torch.as_tensor(rows).cpu()
        if given.dtype == torch.bool:
            if given.shape != (batch,):
                raise ValueError(f"a row mask must have shape ({batch},), got {tuple(given.shape)}")
            return given
        if given.numel() and (given.is_floating_point() or int(given.min()) < 0 or int(given.max()) >= batch):
            raise ValueError(f"rows must be whole numbers in 0-{batch - 1}, got {given.tolist()}")
        return torch.zeros(batch, dtype=torch.bool).index_fill(0, given.reshape(-1).long(), True)

    def _rows(self) -> int:
        for layer in self.layers:
            if isinstance(layer, HoldsTTTState) and layer.state is not None:
                return layer.state.batch_size
            if isinstance(layer, WindowCacheLayer) and layer.memory is not None:
                return layer.memory.count.shape[0]
            if layer.keys is not None:
                return layer.keys.shape[0]
        raise ValueError("the cache is empty: it has no rows to reset")


def _refuse_to_give_back(tokens_to_remove: int) -> None:
    if tokens_to_remove:
        raise ValueError(
            f"TTT and bounded windows cannot give back tokens they have learned from (asked for {tokens_to_remove}): "
            "take cache.snapshot() before tokens that may have to be undone, and go back to it"
        )


def _as_index(rows: Tensor) -> Tensor:
    return rows.nonzero().squeeze(1) if rows.dtype == torch.bool else rows
