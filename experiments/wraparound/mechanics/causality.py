"""Does any output change when a later input does? Ring, TTT and both together, batched and streamed (claim C03).

Each probe can fail: the changed position's own outputs must change, and a model whose attention masks nothing, put
through the same probe, must be caught.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from backbones.moshi import give_ring_room
from experiments.wraparound.mechanics.probe_models import (
    SMALL,
    ProbeModel,
    ProbeTTT,
    build_probe_lm,
    let_see_the_future,
    random_tokens,
    streamed_logits,
    whole_logits,
)
from experiments.wraparound.mechanics.ring_probe import called, calls_of

AS_PACKAGED = "ring"
ARMS: dict[str, ProbeTTT | None] = {
    AS_PACKAGED: None,
    "ring_with_room": None,
    "ttt_replaces": ProbeTTT(mode="replace"),
    "ttt_gated": ProbeTTT(mode="gated"),
    "ttt_gated_linear": ProbeTTT(mode="gated", inner_model="linear"),
    "ttt_and_window": ProbeTTT(mode="replace", window_steps=5),
    "ttt_window_and_sinks": ProbeTTT(mode="gated", window_steps=5, sinks=2),
    "ttt_everywhere": ProbeTTT(mode="replace", layers=None),
}


@dataclass(frozen=True, kw_only=True)
class CausalitySizes:
    """positions: of a stream, several times the context. tokens_per_call: of the streamed forms.

    changed: the positions (from 0) whose token is replaced, some before and some past the wrap.
    """

    model: ProbeModel = SMALL
    positions: int = 31
    tokens_per_call: tuple[int, ...] = (1, 3)
    changed: tuple[int, ...] = (2, 4, 7, 13, 14, 26)
    arms: tuple[str, ...] = field(default_factory=lambda: tuple(ARMS))


@dataclass(frozen=True, kw_only=True)
class Change:
    """Largest change, relative to the largest output, of the outputs before the changed input, and from it on."""

    earlier: float
    later: float


@dataclass(frozen=True, kw_only=True)
class Causality:
    """changes: (arm, form, changed position) -> Change; the arm "sees_the_future" is the one that must be caught."""

    sizes: CausalitySizes
    changes: dict[tuple[str, str, int], Change]

    def metrics(self) -> dict[str, float]:
        metrics = {}
        wrap = self.sizes.model.context_steps
        for arm, form in dict.fromkeys((arm, form) for arm, form, _ in self.changes):
            for when, is_past in (("before_wrap", False), ("after_wrap", True)):
                found = [
                    change
                    for key, change in self.changes.items()
                    if key[:2] == (arm, form) and (key[2] >= wrap) == is_past
                ]
                if found:
                    name = f"causality/{arm}_{form}_{when}"
                    metrics[f"{name}_earlier_outputs_change"] = max(change.earlier for change in found)
                    # The least that a change moved what comes after it: 0 would be a probe that cannot fail.
                    metrics[f"{name}_later_outputs_change"] = min(change.later for change in found)
        return metrics

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        return {}


@torch.no_grad()
def measure_causality(sizes: CausalitySizes) -> Causality:
    """Replaces one token at a time and compares every output, for each arm, batched and streamed."""
    changes = {}
    for arm in sizes.arms:
        lm = build_probe_lm(sizes.model, ARMS[arm])
        if arm != AS_PACKAGED:
            give_ring_room(lm, max(sizes.tokens_per_call))
        changes |= _changes(sizes, arm, "batched", lambda tokens, lm=lm: whole_logits(lm, tokens))
        for count in sizes.tokens_per_call:
            calls = calls_of(sizes.positions, count)
            changes |= _changes(
                sizes, arm, called(count), lambda tokens, lm=lm, calls=calls: streamed_logits(lm, tokens, calls)
            )
    caught = let_see_the_future(build_probe_lm(sizes.model))
    changes |= _changes(sizes, "sees_the_future", "batched", lambda tokens: whole_logits(caught, tokens))
    return Causality(sizes=sizes, changes=changes)


def _changes(
    sizes: CausalitySizes, arm: str, form: str, run: Callable[[Tensor], Tensor]
) -> dict[tuple[str, str, int], Change]:
    tokens = random_tokens(sizes.model, rows=1, positions=sizes.positions)
    logits = run(tokens)
    changes = {}
    for position in sizes.changed:
        other = tokens.clone()
        other[..., position] = (other[..., position] + 1) % sizes.model.vocabulary
        moved = (run(other) - logits).abs().amax(dim=(0, 2)) / logits.abs().max()
        changes[arm, form, position] = Change(
            earlier=float(moved[:position].max()), later=float(moved[position:].max())
        )
    return changes
