"""What a ring cache holds and what each query may see, read off any release's own classes; imports no moshi itself.

The two probes work on classes given to them, so that the installed release and older ones (in a process of their own,
`older_ring.py`) are measured by the same lines.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

NOTHING = -1


@dataclass(frozen=True, kw_only=True)
class RingCall:
    """What the ring said and held when one call of `tokens` positions, the first of them `first`, read it.

    labels: (capacity,) the position that the ring reports for each slot, -1 for a slot it calls invalid.
    contents: (capacity,) the position whose key really lies in each slot, -1 where none was ever written.
    """

    first: int
    tokens: int
    labels: NDArray[np.int64]
    contents: NDArray[np.int64]

    @property
    def mislabelled_slots(self) -> int:
        """Slots reported as one position that hold another."""
        return int(np.sum((self.labels != NOTHING) & (self.labels != self.contents)))

    @property
    def mislabelled_by_positions(self) -> int:
        """How far the worst label is from the position that lies there."""
        return int(np.abs(self.labels - self.contents)[self.labels != NOTHING].max(initial=0))


def trace_ring(ring: Any, tokens_per_call: Sequence[int]) -> list[RingCall]:
    """Feeds keys that encode their own position through `RingKVCache.complete`, one call per entry of the list.

    ring: of batch 1, one head, one dimension and dtype float64, of any release.
    """
    takes_mask = "exec_mask" in inspect.signature(ring.complete).parameters
    mask = (torch.ones(1, dtype=torch.bool),) if takes_mask else ()
    calls, first = [], 0
    for tokens in tokens_per_call:
        # A slot never written holds 0, so position p is written as p + 1.
        keys = torch.arange(first + 1, first + tokens + 1, dtype=torch.float64).view(1, 1, tokens, 1)
        result = ring.complete(keys, keys, *mask)
        calls.append(
            RingCall(
                first=first,
                tokens=tokens,
                labels=result.positions.reshape(-1).numpy().copy(),
                contents=result.keys.reshape(-1).numpy().astype(np.int64) - 1,
            )
        )
        first += tokens
    return calls


def visible_positions(
    attention_class: type[nn.Module], context: int, capacity: int, tokens_per_call: Sequence[int]
) -> NDArray[np.bool_]:
    """(queries, keys) bool: which key positions reach each query's output through the real streaming attention.

    Queries and keys are zero, so that the softmax is uniform over what the mask lets through, and the value of position
    p is the p-th unit vector: an output's non-zero entries are the positions it saw.
    """
    positions = sum(tokens_per_call)
    attention: Any = attention_class(positions, 1, causal=True, context=capacity).eval()
    identity = torch.eye(positions)
    with torch.no_grad():
        for name, parameter in attention.named_parameters():
            parameter.copy_(torch.cat([0 * identity, 0 * identity, identity]) if "in_proj" in name else identity)
    seen, first = [], 0
    with torch.no_grad(), attention.streaming(1):
        # The ring takes its size from the context at the start of streaming, the mask its window from it at every call.
        attention.context = context
        for tokens in tokens_per_call:
            x = identity[None, first : first + tokens]
            seen.append(attention(x, x, x)[0])
            first += tokens
    return (torch.cat(seen).nan_to_num(0.0) > 0).numpy()


def window_positions(positions: int, context: int) -> NDArray[np.bool_]:
    """(queries, keys) bool: the definition of a window, each query sees itself and the `context - 1` before it."""
    distance = np.arange(positions)[:, None] - np.arange(positions)[None]
    return (distance >= 0) & (distance < context)


def keys_lost_in_closed_form(place_in_call: int, tokens_per_call: int, context: int) -> int:
    """Keys that a full ring of capacity `context` takes from the query at that place (0-based) of its call.

    All tokens of a call are written before the first of its queries reads, so the query's oldest keys are gone by
    then: one for each token of the call that comes after it, and never more than the window has.
    """
    return min(context, tokens_per_call - 1 - place_in_call)


def calls_of(positions: int, tokens_per_call: int) -> list[int]:
    """`positions` cut into calls of that many tokens, the last one shorter where they do not divide."""
    whole, rest = divmod(positions, tokens_per_call)
    return [tokens_per_call] * whole + ([rest] if rest else [])


def called(tokens_per_call: int) -> str:
    """How metrics name calls of that many tokens."""
    return f"{tokens_per_call}_token{'s' if tokens_per_call > 1 else ''}_per_call"
