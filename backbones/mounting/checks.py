"""What a user asks to be mounted where, checked: the same for every backbone. Each function raises ValueError."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from typing import Any


def checked_layers(layers: Any, backbone: str, available: int) -> list[int]:
    """The layers in rising order."""
    if isinstance(layers, str) or not isinstance(layers, Iterable):
        raise ValueError(f"layers must be several whole numbers, such as [3] or range(2, 4), got {layers!r}")
    chosen = sorted(whole_number("each of layers", layer) for layer in layers)
    for layer in chosen:
        require_layer(layer, backbone, available)
    if len(set(chosen)) != len(chosen):
        raise ValueError(f"each layer can be mounted on once, got {chosen}")
    return chosen


def checked_windows(
    window: int | Mapping[int, int] | None, sinks: int, backbone: str, available: int, replaced: list[int]
) -> dict[int, int]:
    """{layer: positions its attention sees}; an attention that is replaced has none."""
    if sinks < 0:
        raise ValueError(f"sinks must be 0 or more, got {sinks}")
    if window is None:
        if sinks:
            raise ValueError(f"sinks={sinks} needs a window to stand in front of: give window=...")
        return {}
    if isinstance(window, Mapping):
        windows = {
            whole_number("each layer of window", layer): whole_number(f"the window of layer {layer}", positions)
            for layer, positions in window.items()
        }
    else:
        positions = whole_number("window", window)
        windows = {layer: positions for layer in range(available) if layer not in replaced}
    for layer, positions in windows.items():
        require_layer(layer, backbone, available)
        if layer in replaced:
            raise ValueError(f"layer {layer} has no attention left for a window: TTT replaces it")
        if positions < 1:
            raise ValueError(f"a window sees 1 or more positions, got {positions} for layer {layer}")
    return windows


def whole_number(name: str, value: Any) -> int:
    """`value` as an int: numpy's and torch's whole numbers are taken, True, 2.0 and "2" are not."""
    try:
        if not isinstance(value, bool):
            return operator.index(value)
    except TypeError:
        pass
    raise ValueError(f"{name} must be a whole number, got {value!r}")


def require_layer(layer: int, backbone: str, available: int) -> None:
    if not 0 <= layer < available:
        raise ValueError(f"backbone '{backbone}' has no layer {layer} to mount on; it has layers 0-{available - 1}")
