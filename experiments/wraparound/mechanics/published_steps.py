"""Steps of the published 7B at real positions, with random weights: their time, and the bytes of a stream.

For a GPU: 7 billion parameters in BF16 and a ring of 48,000 positions take 40 GB. Time and bytes depend on neither the
weights nor what a ring holds, so a stream is put at a position by setting its counters.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from moshi.models.lm import LMModel
from moshi.modules.transformer import _MHAState
from numpy.typing import NDArray

from backbones.moshi import MoshiConfig, build_lm, mount, set_context
from experiments.wraparound.mechanics.state_cost import streaming_bytes
from ttt_core import TTTConfig


@dataclass(frozen=True, kw_only=True)
class PublishedStepsSizes:
    """contexts: of the ring, the published one and longer. positions: where steps are timed; those beyond a context
    are past its wrap. steps: timed at each. config: None for the published one."""

    contexts: tuple[int, ...] = (3_000, 48_000)
    positions: tuple[int, ...] = (64, 2_990, 3_010, 16_000, 47_900, 48_100)
    steps: int = 20
    with_ttt: bool = True
    config: MoshiConfig | None = None


@dataclass(frozen=True, kw_only=True)
class PublishedSteps:
    """Each by memory ("ring_3000", "ttt_mlp_top_quarter"). seconds: position -> (steps,). nbytes: of one stream, as the
    states' tensors have them. allocated: what the CUDA allocator gave for it; nothing on a CPU."""

    seconds: dict[str, dict[int, NDArray[np.float64]]]
    nbytes: dict[str, int]
    allocated: dict[str, int]

    def metrics(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for memory, by_position in self.seconds.items():
            found[f"published/{memory}_bytes"] = float(self.nbytes[memory])
            if memory in self.allocated:
                found[f"published/{memory}_bytes_allocated"] = float(self.allocated[memory])
            for position, taken in by_position.items():
                found[f"published/{memory}_step_ms_position_{position}"] = 1e3 * float(np.median(taken))
        return found

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        return {
            f"published/{memory}_step_ms_{position}": 1e3 * taken
            for memory, by_position in self.seconds.items()
            for position, taken in by_position.items()
        }


@torch.no_grad()
def measure_published_steps(sizes: PublishedStepsSizes) -> PublishedSteps:
    """Times `LMModel.forward_text` one position a call on the GPU where there is one, else where the user waits."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = MoshiConfig.published() if sizes.config is None else sizes.config
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    lm = build_lm(config, device=device, dtype=dtype).eval()
    seconds: dict[str, dict[int, NDArray[np.float64]]] = {}
    nbytes, allocated = dict[str, int](), dict[str, int]()

    def measure(memory: str) -> None:
        before = torch.cuda.memory_allocated() if device == "cuda" else 0
        with lm.streaming(1):
            nbytes[memory] = streaming_bytes(lm)
            if device == "cuda":
                allocated[memory] = torch.cuda.memory_allocated() - before
            seconds[memory] = {position: _timed_at(lm, position, sizes.steps) for position in sizes.positions}

    for context in sizes.contexts:
        set_context(lm, context)
        measure(f"ring_{context}")
    if sizes.with_ttt:
        heads, layers = config.num_heads, config.num_layers
        ttt = TTTConfig(hidden_size=config.dim, num_heads=heads, inner_model="mlp")
        mount(lm, range(layers - max(1, layers // 4), layers), ttt, window=sizes.contexts[0])
        measure("ttt_mlp_top_quarter")
    return PublishedSteps(seconds=seconds, nbytes=nbytes, allocated=allocated)


def _timed_at(lm: LMModel, position: int, steps: int) -> NDArray[np.float64]:
    """(steps,) seconds of steps from a position on, after three that are not counted."""
    _move_to(lm, position)
    tokens = torch.zeros(1, lm.num_codebooks, 1, dtype=torch.long, device=lm.device)
    taken = []
    for _ in range(3 + steps):
        with _timed(taken, lm.device):
            lm.forward_text(tokens)
    return np.array(taken[3:])


def _move_to(lm: LMModel, position: int) -> None:
    """Sets every counter of an open stream to that many positions."""
    for state in lm.get_streaming_state().values():
        if isinstance(state, _MHAState):
            assert state.kv_cache is not None
            state.offset.fill_(position)
            state.kv_cache.end_offset.fill_(position)
        elif hasattr(state, "offsets"):
            state.offsets.fill_(position)


@contextmanager
def _timed(taken: list[float], device: torch.device) -> Iterator[None]:
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    yield
    if device.type == "cuda":
        torch.cuda.synchronize()
    taken.append(time.perf_counter() - started)
