"""Which step writes which slot of Moshi's ring, which position it overwrites, and which keys a query loses by it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from moshi.models.loaders import FRAME_RATE, _lm_kwargs
from moshi.modules.transformer import RingKVCache, StreamingMultiheadAttention
from numpy.typing import NDArray

from experiments.wraparound.mechanics.ring_probe import (
    NOTHING,
    RingCall,
    called,
    calls_of,
    keys_lost_in_closed_form,
    trace_ring,
    visible_positions,
    window_positions,
)

PUBLISHED_CONTEXT_STEPS: int = _lm_kwargs["context"]
SECONDS_A_MINUTE = 60


@dataclass(frozen=True, kw_only=True)
class RingSizes:
    """capacity_steps: of the ring followed step by step; steps_past_wrap: how long it is followed after it is full.

    small_context_steps, tokens_per_call: of the attention whose visible keys are counted (its width is the number of
    positions, so it stays small).
    """

    capacity_steps: int = PUBLISHED_CONTEXT_STEPS
    steps_past_wrap: int = 9
    small_context_steps: int = 7
    tokens_per_call: tuple[int, ...] = (1, 2, 3, 8)


@dataclass(frozen=True, kw_only=True)
class RingPositions:
    """slots: (steps,) slot written by each step. overwritten: (steps,) position each step overwrites, -1 for none.

    keys_lost: tokens per call -> (queries,) keys missing from each query's window once the ring is full.
    Steps and positions count from 0 in the arrays and from 1 in the metrics, as people count them.
    """

    sizes: RingSizes
    slots: NDArray[np.int64]
    overwritten: NDArray[np.int64]
    mislabelled_slots: int
    keys_lost: dict[int, NDArray[np.int64]]
    keys_lost_with_room: dict[int, int]
    disagreements_with_closed_form: int

    def metrics(self) -> dict[str, float]:
        first = int(np.argmax(self.overwritten != NOTHING))
        metrics = {
            "ring/capacity_steps": self.sizes.capacity_steps,
            "ring/minutes_until_overwriting": self.sizes.capacity_steps / FRAME_RATE / SECONDS_A_MINUTE,
            "ring/first_overwriting_step": first + 1,
            "ring/first_overwritten_position": int(self.overwritten[first]) + 1,
            "ring/mislabelled_slots": self.mislabelled_slots,
            "ring/queries_that_disagree_with_the_closed_form": self.disagreements_with_closed_form,
        }
        for tokens, lost in self.keys_lost.items():
            name = called(tokens)
            metrics[f"ring/keys_lost_per_query_{name}"] = float(lost.mean())
            metrics[f"ring/most_keys_lost_{name}"] = int(lost.max())
            metrics[f"ring/keys_lost_with_room_{name}"] = self.keys_lost_with_room[tokens]
        return {key: float(value) for key, value in metrics.items()}

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        around = slice(self.sizes.capacity_steps - self.sizes.steps_past_wrap, None)
        arrays = {"ring/slot_by_step": self.slots[around], "ring/overwritten_by_step": self.overwritten[around]}
        return arrays | {f"ring/keys_lost_{called(tokens)}": lost for tokens, lost in self.keys_lost.items()}


def measure_ring_positions(sizes: RingSizes) -> RingPositions:
    """Follows a ring of the given capacity one token per call past its wrap, then counts what queries of calls of
    several tokens see through the real attention, with the ring as it is and with room for the call."""
    ring = RingKVCache(1, 1, 1, sizes.capacity_steps, device=torch.device("cpu"), dtype=torch.float64)
    trace = trace_ring(ring, [1] * (sizes.capacity_steps + sizes.steps_past_wrap))
    slots, overwritten = written_and_overwritten(trace)
    keys_lost, with_room, disagreements = {}, {}, 0
    context = sizes.small_context_steps
    for tokens in sizes.tokens_per_call:
        lost = keys_lost_when_full(context, context, tokens)
        expected = [keys_lost_in_closed_form(place, tokens, context) for place in range(tokens)]
        disagreements += int(np.sum(lost != np.tile(expected, len(lost) // tokens)))
        keys_lost[tokens] = lost
        with_room[tokens] = int(keys_lost_when_full(context, context + tokens - 1, tokens).sum())
    return RingPositions(
        sizes=sizes,
        slots=slots,
        overwritten=overwritten,
        mislabelled_slots=sum(call.mislabelled_slots for call in trace),
        keys_lost=keys_lost,
        keys_lost_with_room=with_room,
        disagreements_with_closed_form=disagreements,
    )


def written_and_overwritten(trace: Sequence[RingCall]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(calls,) slot that each one-token call wrote, and (calls,) position that lay there before, -1 for none."""
    slots, overwritten = [], []
    before = np.full_like(trace[0].contents, NOTHING)
    for call in trace:
        (changed,) = np.nonzero(call.contents != before)
        assert call.tokens == 1 and len(changed) == 1, "a call of one token writes one slot"
        slots.append(int(changed[0]))
        overwritten.append(int(before[changed[0]]))
        before = call.contents
    return np.array(slots), np.array(overwritten)


def keys_lost_when_full(context: int, capacity: int, tokens_per_call: int) -> NDArray[np.int64]:
    """(queries,) keys missing from each query's window, for three calls that start when the ring is already full."""
    calls_until_full = -(-(capacity + tokens_per_call) // tokens_per_call)
    positions = (calls_until_full + 3) * tokens_per_call
    calls = calls_of(positions, tokens_per_call)
    seen = visible_positions(StreamingMultiheadAttention, context, capacity, calls)
    window = window_positions(positions, context)
    assert not np.any(seen & ~window), "a query saw a key outside its window"
    return (window & ~seen).sum(axis=1)[calls_until_full * tokens_per_call :]
