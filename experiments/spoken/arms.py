"""What an arm's row means for the layers of any backbone: windows, equal memory, and what is logged of memory."""

from __future__ import annotations

from itertools import pairwise

from transformers import PreTrainedModel

from backbones.mounting import MemoryDescription, mount
from experiments.harness import metric_names as names
from experiments.spoken.configuration import Arm
from ttt_core import TTTConfig


def windows_of(arm: Arm, layers: int) -> dict[int, int]:
    """{layer: most recent positions its attention sees} of the layers whose attention is bounded."""
    windows: dict[int, int] = {}
    for layer in range(layers):
        is_upper = layer in arm.upper_layers
        if is_upper and arm.ttt is not None:
            continue
        window = arm.upper_window if is_upper else arm.lower_window
        if window is not None:
            windows[layer] = window
    return windows


def mount_on_decoder(llm: PreTrainedModel, arm: Arm) -> None:
    """Puts what `arm` says into a language model of transformers, in place."""
    windows = windows_of(arm, llm.config.num_hidden_layers) or None
    if arm.ttt is not None:
        mount(llm, layers=arm.upper_layers, config=arm.ttt, mode="replace", window=windows, sinks=arm.sinks)
    elif windows:
        mount(llm, layers=(), window=windows, sinks=arm.sinks)


def window_of_equal_memory(ttt: TTTConfig, bytes_per_position: int, sinks: int) -> int:
    """Positions of a window that, with its pinned ones, takes at most the bytes of a TTT layer's state.

    The state is the inner weights and, of the open mini-batch, as many gradient sums; all FP32.
    bytes_per_position: of one layer's keys and values.
    """
    per_head = sum(wide * narrow + narrow for wide, narrow in pairwise(ttt.inner_widths))
    state_bytes = 2 * 4 * ttt.num_heads * per_head
    return state_bytes // bytes_per_position - sinks


def memory_metrics(memory: MemoryDescription, positions: int) -> dict[str, float]:
    """Bytes of one conversation of so many positions, as logged."""
    return {
        names.STATE_BYTES: float(memory.bytes_at(positions)),
        names.STATE_BYTES_FIXED: float(memory.bytes_fixed),
        names.STATE_BYTES_PER_POSITION: float(memory.bytes_per_position),
    }
