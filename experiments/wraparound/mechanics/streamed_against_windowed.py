"""Streaming through the ring against one batched call with the window's mask, position by position (claim C02).

The batched call of the same model is the definition: each position sees exactly the last `context` positions of every
layer. Where the streamed output leaves it, the cache is at fault; where it does not, the cache is innocent.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from backbones.moshi import give_ring_room
from experiments.wraparound.mechanics.probe_models import (
    SMALL,
    ProbeModel,
    build_probe_lm,
    random_tokens,
    relative_difference,
    streamed_logits,
    whole_logits,
)
from experiments.wraparound.mechanics.ring_probe import called, calls_of

# Far above FP32's rounding (1e-6 of the largest output, measured) and far below one lost key (1e-2 and more).
NOTICED = 1e-4
SEVERAL = 3


@dataclass(frozen=True, kw_only=True)
class StreamedSizes:
    """positions: of each stream, several times the context. tokens_per_call: each is run with the ring as it is and
    with room for the call; one of them should exceed the context.

    rows: of the batch whose rows are out of step. contexts_steps: windows at which calls of two tokens are compared.
    """

    model: ProbeModel = SMALL
    positions: int = 45
    tokens_per_call: tuple[int, ...] = (1, 2, SEVERAL, 8)
    rows: int = 3
    contexts_steps: tuple[int, ...] = (7, 31, 127)

    def __post_init__(self) -> None:
        if self.positions < 3 * self.model.context_steps:
            raise ValueError(
                f"{self.positions} positions do not go well past a ring of {self.model.context_steps}; "
                f"give {3 * self.model.context_steps} or more"
            )


@dataclass(frozen=True, kw_only=True)
class StreamedAgainstWindowed:
    """difference: tokens per call -> (positions,) relative difference, ring as it is; with_room the same with room.

    out_of_step: name of a way to call -> largest difference over everything that rows out of step gave.
    by_context: window -> largest difference after the wrap at two tokens per call.
    """

    sizes: StreamedSizes
    difference: dict[int, NDArray[np.float64]]
    with_room: dict[int, NDArray[np.float64]]
    out_of_step: dict[str, float]
    by_context: dict[int, float]

    def metrics(self) -> dict[str, float]:
        metrics = {}
        for tokens, by_position in self.difference.items():
            # The first call that ends beyond the ring's capacity is the first to overwrite what it may still need.
            wrap = self.sizes.model.context_steps // tokens * tokens
            name = called(tokens)
            metrics[f"streamed/max_difference_before_wrap_{name}"] = by_position[:wrap].max(initial=0.0)
            metrics[f"streamed/max_difference_at_wrap_{name}"] = by_position[wrap : wrap + tokens].max()
            metrics[f"streamed/max_difference_after_wrap_{name}"] = by_position[wrap + tokens :].max()
            metrics[f"streamed/max_difference_with_room_{name}"] = self.with_room[tokens].max()
            (noticed,) = np.nonzero(by_position > NOTICED)
            metrics[f"streamed/positions_that_differ_{name}"] = len(noticed)
            if len(noticed):
                metrics[f"streamed/first_position_that_differs_{name}"] = noticed[0] + 1
        for name, value in self.out_of_step.items():
            metrics[f"streamed/rows_out_of_step_max_difference_{name}"] = value
        for context, value in self.by_context.items():
            metrics[f"streamed/max_difference_after_wrap_{called(2)}_context_{context}"] = value
        return {name: float(value) for name, value in metrics.items()}

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        plain = {f"streamed/difference_{called(tokens)}": values for tokens, values in self.difference.items()}
        roomy = {f"streamed/difference_with_room_{called(tokens)}": values for tokens, values in self.with_room.items()}
        return plain | roomy


@torch.no_grad()
def measure_streamed_against_windowed(sizes: StreamedSizes) -> StreamedAgainstWindowed:
    """Streams the same tokens in calls of several lengths and compares each position with the batched window."""
    ways = {
        f"{called(1)}": _rows_out_of_step(sizes, [1], has_room=False),
        f"{called(SEVERAL)}": _rows_out_of_step(sizes, [SEVERAL], has_room=False),
        f"{called(SEVERAL)}_with_room": _rows_out_of_step(sizes, [SEVERAL], has_room=True),
        f"{SEVERAL}_and_{called(1)}": _rows_out_of_step(sizes, [SEVERAL, 1], has_room=False),
        f"{SEVERAL}_and_{called(1)}_with_room": _rows_out_of_step(sizes, [SEVERAL, 1], has_room=True),
    }
    return StreamedAgainstWindowed(
        sizes=sizes,
        difference={count: difference_by_position(sizes, count, has_room=False) for count in sizes.tokens_per_call},
        with_room={count: difference_by_position(sizes, count, has_room=True) for count in sizes.tokens_per_call},
        out_of_step=ways,
        by_context={context: _after_wrap_of_two(sizes, context) for context in sizes.contexts_steps},
    )


@torch.no_grad()
def difference_by_position(sizes: StreamedSizes, tokens_per_call: int, has_room: bool) -> NDArray[np.float64]:
    """(positions,) relative difference of two rows streamed in calls of that many tokens from their batched run."""
    tokens = random_tokens(sizes.model, rows=2, positions=sizes.positions)
    whole = whole_logits(build_probe_lm(sizes.model), tokens)
    lm = build_probe_lm(sizes.model)
    if has_room:
        give_ring_room(lm, tokens_per_call)
    streamed = streamed_logits(lm, tokens, calls_of(sizes.positions, tokens_per_call))
    return relative_difference(streamed, whole).numpy()


def _after_wrap_of_two(sizes: StreamedSizes, context: int) -> float:
    """Largest difference after the wrap when two tokens come per call: a half of the queries lacks one key."""
    wider = replace(sizes, model=replace(sizes.model, context_steps=context), positions=3 * context)
    return float(difference_by_position(wider, 2, has_room=False)[context + 2 :].max())


def _rows_out_of_step(sizes: StreamedSizes, lengths: list[int], has_room: bool) -> float:
    """Largest relative difference from each row's own batched run, when rows pause and start anew at random calls.

    lengths: of the calls, in turn. A paused row is masked by `exec_mask` and given other tokens, which must leave no
    trace; a row that starts anew is reset.
    """
    lm, alone = build_probe_lm(sizes.model), build_probe_lm(sizes.model)
    if has_room:
        give_ring_room(lm, max(lengths))
    generator = torch.Generator().manual_seed(7)
    calls = 2 * sizes.positions * len(lengths) // sum(lengths)
    segments: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(sizes.rows)]
    differences: list[float] = []

    def close(row: int) -> None:
        if segments[row]:
            tokens = torch.cat([given for given, _ in segments[row]], dim=-1)
            streamed = torch.cat([output for _, output in segments[row]], dim=0)
            differences.append(float(relative_difference(streamed[None], whole_logits(alone, tokens[None])).max()))
        segments[row] = []

    with lm.streaming(sizes.rows):
        for call in range(calls):
            restarts = torch.rand(sizes.rows, generator=generator) < 1 / sizes.positions
            runs = torch.rand(sizes.rows, generator=generator) < 0.7
            for row in torch.nonzero(restarts).flatten().tolist():
                close(row)
            lm.reset_streaming(restarts)
            lm.set_exec_mask(runs)
            tokens = random_tokens(sizes.model, sizes.rows, lengths[call % len(lengths)], seed=1000 + call)
            logits = whole_logits(lm, tokens)
            for row in torch.nonzero(runs).flatten().tolist():
                segments[row].append((tokens[row], logits[row]))
    for row in range(sizes.rows):
        close(row)
    return max(differences)
