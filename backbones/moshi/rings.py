"""How far Moshi's attention sees and how much its ring caches hold, set before streaming.

The package gives a ring exactly `context` positions. That is right for one step per call. A call of several steps
writes them all before its first query looks, and past the wrap it overwrites keys which that query may still see.
"""

from __future__ import annotations

from collections.abc import Iterable

from moshi.models.lm import LMModel

from backbones.moshi.attention import MountedAttention
from backbones.moshi.mount import BACKBONE, attention_layers, require_lm, require_not_streaming
from backbones.mounting.checks import require_layer


def give_ring_room(lm: LMModel, tokens_per_call: int) -> LMModel:
    """Let one streaming call bring so many steps exactly: rings of context + tokens_per_call - 1. In place.

    What attention sees stays as it is. Before or after mounting; raises ValueError while streaming.
    """
    require_lm(lm)
    require_not_streaming(lm, "give the rings room")
    _require_positions("tokens_per_call", tokens_per_call)
    for attention in attention_layers(lm).values():
        MountedAttention.equip(attention).tokens_per_call = tokens_per_call
    return lm


def set_context(lm: LMModel, positions: int | None, layers: Iterable[int] | None = None) -> LMModel:
    """Positions that the attention of the given layers sees, and that its rings hold. In place.

    positions: the longest stream to come, for full attention that can still stream; None sees everything and can only
        run batched.
    layers: None for every attention that mounting has given no window.

    Raises ValueError while streaming, and for layers with a mounted window or without attention.
    """
    require_lm(lm)
    require_not_streaming(lm, "set the context")
    if positions is not None:
        _require_positions("positions", positions)
    attentions, available = attention_layers(lm), len(lm.transformer.layers)
    windowed = {
        index for index, each in attentions.items() if isinstance(each, MountedAttention) and each.window is not None
    }
    chosen = [index for index in attentions if index not in windowed] if layers is None else list(layers)
    for layer in chosen:
        require_layer(layer, BACKBONE, available)
        if layer not in attentions:
            raise ValueError(f"layer {layer} has no attention: TTT replaces it")
        if layer in windowed:
            raise ValueError(f"layer {layer} has a mounted window of {attentions[layer].context}; mount with another")
    for layer in chosen:
        attentions[layer].context = positions
    return lm


def _require_positions(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
