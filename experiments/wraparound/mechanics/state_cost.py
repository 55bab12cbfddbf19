"""Time per step and bytes of state far into a stream: TTT in every layer, and a cache that keeps it all (claim C11)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np
import torch
from moshi.models.lm import LMModel
from moshi.modules.transformer import _MHAState
from numpy.typing import NDArray
from torch import Tensor

from backbones.moshi.streaming_ttt import TTTStreamState
from experiments.wraparound.mechanics.probe_models import (
    ProbeModel,
    ProbeTTT,
    build_probe_lm,
    random_tokens,
    whole_logits,
)
from experiments.wraparound.mechanics.timing import (
    Slope,
    medians,
    quartile_table,
    quartiles_ms,
    require_three,
    slope,
    timed_in_turns,
)

CACHE = "cache"
NARROW = ProbeModel(layers=2, width=32, heads=2)


@dataclass(frozen=True, kw_only=True)
class StateCostSizes:
    """positions: how far into the stream steps are timed, in increasing order. rounds: timed steps at each.

    tokens_per_call: with which the stream is brought there; TTT gives the same state for any.
    """

    model: ProbeModel = NARROW
    positions: tuple[int, ...] = (1_024, 2_048, 4_096, 8_192, 16_384, 32_768, 65_536)
    rounds: int = 40
    mini_batch_steps: int = 64
    tokens_per_call: int = 1_024

    def __post_init__(self) -> None:
        require_three(self.positions)


@dataclass(frozen=True, kw_only=True)
class StateCost:
    """seconds: memory -> position -> (rounds,) CPU seconds of a step. nbytes: memory -> position -> bytes of a stream.

    memories: "ttt_linear", "ttt_mlp" in every layer, and "cache", attention with room for all positions.
    """

    seconds: dict[str, dict[int, NDArray[np.float64]]]
    nbytes: dict[str, dict[int, int]]

    def slope_us_per_1000_positions(self, memory: str) -> Slope:
        """How much longer a step takes a thousand positions later, in microseconds."""
        positions, taken = medians(self.seconds[memory])
        return slope(positions / 1e3, taken * 1e6)

    def metrics(self) -> dict[str, float]:
        metrics: dict[str, float] = {}
        for memory, by_position in self.seconds.items():
            first, last = min(by_position), max(by_position)
            metrics |= self.slope_us_per_1000_positions(memory).metrics(f"state_cost/{memory}_us_per_1000_positions")
            for position, taken in by_position.items():
                metrics[f"state_cost/{memory}_step_ms_position_{position}"] = quartiles_ms(taken)[1]
                metrics[f"state_cost/{memory}_bytes_position_{position}"] = self.nbytes[memory][position]
            ratio = np.median(by_position[last]) / np.median(by_position[first])
            metrics[f"state_cost/{memory}_step_time_last_over_first_position"] = float(ratio)
            metrics[f"state_cost/{memory}_bytes_last_over_first_position"] = (
                self.nbytes[memory][last] / self.nbytes[memory][first]
            )
        return {name: float(value) for name, value in metrics.items()}

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        times = {f"state_cost/{name}_position_and_ms": quartile_table(taken) for name, taken in self.seconds.items()}
        sizes = {f"state_cost/{name}_position_and_bytes": np.array(list(n.items())) for name, n in self.nbytes.items()}
        return times | sizes


@torch.no_grad()
def measure_state_cost(sizes: StateCostSizes) -> StateCost:
    """Brings a stream of each memory to every position and times steps there, positions in turns."""
    seconds, nbytes = {}, {}
    for memory in ("ttt_linear", "ttt_mlp", CACHE):
        with ExitStack() as streams:
            lms = _cached_streams(sizes, streams) if memory == CACHE else _ttt_streams(sizes, memory, streams)
            nbytes[memory] = {position: streaming_bytes(lm) for position, lm in lms.items()}
            token = random_tokens(sizes.model, rows=1, positions=1)
            seconds[memory] = timed_in_turns({position: _step(lm, token) for position, lm in lms.items()}, sizes.rounds)
    return StateCost(seconds=seconds, nbytes=nbytes)


def streaming_bytes(lm: LMModel) -> int:
    """Bytes that a model's open stream holds in TTT states and ring caches; a few counters per layer aside."""
    total = 0
    for state in lm.get_streaming_state().values():
        if isinstance(state, TTTStreamState):
            total += state.held.nbytes
        elif isinstance(state, _MHAState) and state.kv_cache is not None:
            total += state.kv_cache.cache.nbytes
    return total


def _ttt_streams(sizes: StateCostSizes, memory: str, streams: ExitStack) -> dict[int, LMModel]:
    """Position -> a model whose open stream stands there; one stream runs and leaves a copy of itself at each."""
    ttt = ProbeTTT(
        inner_model="linear" if memory == "ttt_linear" else "mlp", layers=None, mini_batch_steps=sizes.mini_batch_steps
    )
    runner = build_probe_lm(sizes.model, ttt)
    streams.enter_context(runner.streaming(1))
    lms, at = {}, 0
    for position in sizes.positions:
        while at < position:
            count = min(sizes.tokens_per_call, position - at)
            whole_logits(runner, random_tokens(sizes.model, rows=1, positions=count, seed=at))
            at += count
        lm = build_probe_lm(sizes.model, ttt)
        streams.enter_context(lm.streaming(1))
        lm.set_streaming_state(copy.deepcopy(runner.get_streaming_state()))
        lms[position] = lm
    return lms


def _cached_streams(sizes: StateCostSizes, streams: ExitStack) -> dict[int, LMModel]:
    """Position -> a model with a ring for every position so far and the steps to come, which stands there.

    Its keys and values are drawn, not computed: the time of a step does not depend on what they are, and computing 64k
    of them costs minutes.
    """
    lms = {}
    for position in sizes.positions:
        lm = build_probe_lm(replace(sizes.model, context_steps=position + sizes.rounds + 1))
        streams.enter_context(lm.streaming(1))
        for state in lm.get_streaming_state().values():
            if isinstance(state, _MHAState):
                assert state.kv_cache is not None
                state.kv_cache.cache.normal_()
                state.kv_cache.end_offset.fill_(position)
                state.offset.fill_(position)
        lms[position] = lm
    return lms


def _step(lm: LMModel, token: Tensor) -> Callable[[], object]:
    return lambda: whole_logits(lm, token)
