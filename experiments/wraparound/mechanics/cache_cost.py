"""Time per step with the ring cache and without any cache, as a function of position (claim C05)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np
import torch
from moshi.models.lm import LMModel
from moshi.utils.compile import no_compile
from numpy.typing import NDArray
from torch import Tensor

from experiments.wraparound.mechanics.probe_models import ProbeModel, build_probe_lm, random_tokens, whole_logits
from experiments.wraparound.mechanics.ring_positions import PUBLISHED_CONTEXT_STEPS
from experiments.wraparound.mechanics.timing import (
    Slope,
    medians,
    quartile_table,
    quartiles_ms,
    require_three,
    slope,
    timed_in_turns,
)

WIDER = ProbeModel(layers=4, width=64, context_steps=PUBLISHED_CONTEXT_STEPS)


@dataclass(frozen=True, kw_only=True)
class CacheCostSizes:
    """positions: tokens already there when a step is timed, rounds: timed steps at each; the ring must hold them."""

    model: ProbeModel = WIDER
    positions: tuple[int, ...] = (30, 95, 300, 950, 2_900)
    rounds: int = 9

    def __post_init__(self) -> None:
        require_three(self.positions)
        if self.positions[-1] + self.rounds + 1 > self.model.context_steps:
            raise ValueError(
                f"a ring of {self.model.context_steps} does not hold {self.positions[-1]} positions and "
                f"{self.rounds + 1} steps; give a larger context or a smaller last position"
            )


@dataclass(frozen=True, kw_only=True)
class CacheCost:
    """cached, uncached: position -> (rounds,) CPU seconds of one step. growth: slopes of log time over log position."""

    cached: dict[int, NDArray[np.float64]]
    uncached: dict[int, NDArray[np.float64]]
    cached_growth: Slope
    uncached_growth: Slope

    @property
    def ratios(self) -> dict[int, float]:
        """Position -> median time without a cache over median time with it."""
        return {
            position: float(np.median(self.uncached[position]) / np.median(self.cached[position]))
            for position in self.cached
        }

    def metrics(self) -> dict[str, float]:
        metrics = {}
        for position, ratio in self.ratios.items():
            metrics[f"cache_cost/without_over_with_position_{position}"] = ratio
            for name, seconds in (("with", self.cached), ("without", self.uncached)):
                low, middle, high = quartiles_ms(seconds[position])
                metrics[f"cache_cost/step_ms_{name}_position_{position}"] = middle
                metrics[f"cache_cost/step_ms_{name}_position_{position}_quartile_range"] = high - low
        metrics |= self.cached_growth.metrics("cache_cost/log_time_with_over_log_position")
        metrics |= self.uncached_growth.metrics("cache_cost/log_time_without_over_log_position")
        (before, earlier), (last, later) = list(self.uncached.items())[-2:]
        grown = np.log(np.median(later) / np.median(earlier)) / np.log(last / before)
        metrics["cache_cost/log_time_without_over_log_position_at_the_end"] = float(grown)
        return metrics

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        return {
            "cache_cost/position_and_ms_with": quartile_table(self.cached),
            "cache_cost/position_and_ms_without": quartile_table(self.uncached),
            "cache_cost/position_and_ratio": np.array(list(self.ratios.items())),
        }


@torch.no_grad()
def measure_cache_cost(sizes: CacheCostSizes) -> CacheCost:
    """Times the same next output both ways, at every position in turns, in one process."""
    tokens = random_tokens(sizes.model, rows=1, positions=sizes.positions[-1] + 1)
    whole = build_probe_lm(sizes.model)
    with ExitStack() as streams:
        cached_calls: dict[int, Callable[[], object]] = {}
        for position in sizes.positions:
            # A model for each position: the streaming state lives in the modules.
            lm = build_probe_lm(sizes.model)
            streams.enter_context(lm.streaming(1))
            whole_logits(lm, tokens[..., :position])
            cached_calls[position] = _cached_step(lm, tokens[..., -1:])
        cached = timed_in_turns(cached_calls, sizes.rounds)
    uncached = timed_in_turns(
        {position: _uncached_step(whole, tokens[..., : position + 1]) for position in sizes.positions}, sizes.rounds
    )
    return CacheCost(
        cached=cached,
        uncached=uncached,
        cached_growth=slope(*map(np.log, medians(cached))),
        uncached_growth=slope(*map(np.log, medians(uncached))),
    )


def next_logits_differ_by(model: ProbeModel, position: int) -> float:
    """Largest difference between the two ways' next logits, relative to the largest: the same thing is timed."""
    model = replace(model, context_steps=position + 1)
    tokens = random_tokens(model, rows=1, positions=position + 1)
    with torch.no_grad():
        lm = build_probe_lm(model)
        whole = _uncached_step(lm, tokens)()
        with lm.streaming(1):
            whole_logits(lm, tokens[..., :-1])
            cached = _cached_step(lm, tokens[..., -1:])()
    return float((whole - cached).abs().max() / whole.abs().max())


def _cached_step(lm: LMModel, token: Tensor) -> Callable[[], Tensor]:
    return lambda: whole_logits(lm, token)[:, -1]


def _uncached_step(lm: LMModel, tokens: Tensor) -> Callable[[], Tensor]:
    """The last position's logits from the whole prefix; only they go through the output projection."""

    def step() -> Tensor:
        with no_compile():
            return lm.text_linear(lm.out_norm(lm.transformer(lm.text_emb(tokens[:, 0])))[:, -1])

    return step
