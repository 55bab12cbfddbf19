"""How far back an input can still change an output: the horizon of stacked windows, by gradient.

One window sees `context` positions, but its keys were made by the layer below from `context` positions each, and so on
down: with L layers an input can act on outputs up to L (context - 1) positions later, itself included
L (context - 1) + 1 positions. What was overwritten in the ring is therefore not gone at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from moshi.models.lm import LMModel
from moshi.models.loaders import FRAME_RATE, _lm_kwargs
from numpy.typing import NDArray

from experiments.wraparound.mechanics.probe_models import (
    SMALL,
    ProbeModel,
    ProbeTTT,
    build_probe_lm,
    random_tokens,
    streamed_logits,
)

PUBLISHED_LAYERS: int = _lm_kwargs["num_layers"]
PUBLISHED_CONTEXT_STEPS: int = _lm_kwargs["context"]


@dataclass(frozen=True, kw_only=True)
class HorizonSizes:
    """cases: (layers, context) pairs to measure; one should have the published number of layers, and a context small
    enough that its horizon can be run whole. positions_with_ttt: of a stream with TTT in the last layer, many horizons
    long."""

    model: ProbeModel = SMALL
    cases: tuple[tuple[int, int], ...] = ((1, 5), (2, 5), (3, 4), (PUBLISHED_LAYERS, 3))
    positions_with_ttt: int = 90


@dataclass(frozen=True, kw_only=True)
class Horizon:
    """measured: (layers, context) -> positions whose input has a gradient at one late output, that output's included.

    influence: (layers, context) -> (distances,) norm of that gradient by distance, 1 at its largest.
    influence_with_ttt: (distances,) the same with TTT in place of the last layer's attention.
    streamed_change_within, streamed_change_beyond: relative change of a streamed output when the last input within its
    horizon, or the first beyond, is another token.
    """

    measured: dict[tuple[int, int], int]
    influence: dict[tuple[int, int], NDArray[np.float64]]
    influence_with_ttt: NDArray[np.float64]
    streamed_change_within: float
    streamed_change_beyond: float

    def metrics(self) -> dict[str, float]:
        metrics = {}
        for (layers, context), measured in self.measured.items():
            metrics[f"horizon/positions_{layers}_layers_context_{context}"] = measured
        metrics["horizon/cases_that_disagree_with_the_closed_form"] = sum(
            measured != horizon_positions(*case) for case, measured in self.measured.items()
        )
        published = horizon_positions(PUBLISHED_LAYERS, PUBLISHED_CONTEXT_STEPS)
        metrics["horizon/published_positions_by_closed_form"] = published
        metrics["horizon/published_seconds_by_closed_form"] = published / FRAME_RATE
        metrics["horizon/positions_run_with_ttt"] = len(self.influence_with_ttt)
        metrics["horizon/positions_with_ttt"] = np.count_nonzero(self.influence_with_ttt)
        metrics["horizon/streamed_change_at_last_position_within"] = self.streamed_change_within
        metrics["horizon/streamed_change_at_first_position_beyond"] = self.streamed_change_beyond
        return {name: float(value) for name, value in metrics.items()}

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        windows = {f"horizon/influence_{layers}_layers_context_{n}": v for (layers, n), v in self.influence.items()}
        return windows | {"horizon/influence_with_ttt": self.influence_with_ttt}


def horizon_positions(layers: int, context: int) -> int:
    """Inputs that can act on an output through so many stacked windows, its own among them."""
    return layers * (context - 1) + 1


def measure_horizon(sizes: HorizonSizes) -> Horizon:
    """Measures each case by gradient through the batched model, and a two-layer one by a changed token, streamed."""
    influence = {}
    for layers, context in sizes.cases:
        model = replace(sizes.model, layers=layers, context_steps=context)
        influence[layers, context] = influence_by_distance(
            build_probe_lm(model), positions=horizon_positions(layers, context) + 7, seed=layers
        )
    with_ttt = influence_by_distance(build_probe_lm(sizes.model, ProbeTTT()), sizes.positions_with_ttt, seed=0)
    measured = {case: int(np.nonzero(values)[0][-1]) + 1 for case, values in influence.items()}
    two_layers = replace(sizes.model, layers=2, context_steps=4)
    within, beyond = _streamed_changes(two_layers, [horizon_positions(2, 4) - 1, horizon_positions(2, 4)])
    return Horizon(
        measured=measured,
        influence={case: values / values.max() for case, values in influence.items()},
        influence_with_ttt=with_ttt / with_ttt.max(),
        streamed_change_within=within,
        streamed_change_beyond=beyond,
    )


def influence_by_distance(lm: LMModel, positions: int, seed: int) -> NDArray[np.float64]:
    """(positions,) norm of the gradient of the last output with respect to the input 0, 1, 2, ... positions before it.

    Exactly 0 where there is no path: a masked key has probability 0, and so has its gradient.
    """
    generator = torch.Generator().manual_seed(seed)
    # In FP64, since what reaches across many layers by one path each falls below FP32's smallest number.
    transformer = lm.transformer.double()
    x = torch.randn(1, positions, lm.dim, generator=generator, dtype=torch.float64, requires_grad=True)
    transformer(x)[0, -1].square().sum().backward()
    assert x.grad is not None
    return x.grad[0].norm(dim=-1).flip(0).numpy()


@torch.no_grad()
def _streamed_changes(model: ProbeModel, distances: Sequence[int]) -> list[float]:
    """Relative change of the last streamed output when the token so many positions before it is another."""
    lm = build_probe_lm(model)
    positions = 4 * horizon_positions(model.layers, model.context_steps)
    tokens = random_tokens(model, rows=1, positions=positions)
    last = streamed_logits(lm, tokens, [1] * positions)[:, -1]
    changes = []
    for distance in distances:
        changed = tokens.clone()
        changed[..., positions - 1 - distance] = (changed[..., positions - 1 - distance] + 1) % model.vocabulary
        other = streamed_logits(lm, changed, [1] * positions)[:, -1]
        changes.append(float((other - last).abs().max() / last.abs().max()))
    return changes
