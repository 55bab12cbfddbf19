"""Which layers an arrangement puts TTT in, on a model of any depth."""

from __future__ import annotations

from experiments.memory.configuration import Arrangement


def layers_with_ttt(arrangement: Arrangement, layers: int) -> range:
    """The last quarter (24-31 of 32), every layer, or none."""
    if arrangement.ttt_layers == "none":
        return range(0)
    return range(layers) if arrangement.ttt_layers == "every" else range(layers - layers // 4, layers)
