"""How a run is validated at each scale: which streams, how long, and between which positions losses are compared."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from experiments.harness.study import Scale
from experiments.spoken.configuration import require_positive


@dataclass(frozen=True, kw_only=True)
class ValidationPlan:
    """What is read.

    positions: of every stream. streams: how many, the same for every run of the same data; an interval is over them.
    edges: of the buckets of loss by position and of recall by distance.
    forgets_every: the control reads the same streams with a fresh memory after so many positions, so that what is hard
        about a place is hard for both.
    memory_positions: read at once by one and by four samples, to see what a sample takes.
    """

    positions: int
    streams: int
    edges: tuple[int, ...]
    forgets_every: int
    memory_positions: int

    def __post_init__(self) -> None:
        require_positive(self, "positions", "streams", "forgets_every", "memory_positions")
        if len(self.edges) < 3 or any(first >= end for first, end in pairwise(self.edges)):
            raise ValueError(f"edges must be three or more rising positions, got {self.edges}")


EDGES = (0, 1000, 5000, 10000, 30000, 60000)
"""1k, 5k, 10k, 30k, 60k: the positions that claim C23 is about, as bins of the same streams."""

PLANS: dict[Scale, ValidationPlan] = {
    "smoke": ValidationPlan(
        positions=1024, streams=2, edges=(0, 256, 512, 1024), forgets_every=256, memory_positions=256
    ),
    "cpu": ValidationPlan(positions=65536, streams=4, edges=EDGES, forgets_every=8192, memory_positions=8192),
    "gpu": ValidationPlan(positions=65536, streams=20, edges=EDGES, forgets_every=8192, memory_positions=8192),
    "full": ValidationPlan(positions=65536, streams=20, edges=EDGES, forgets_every=8192, memory_positions=8192),
}

SKIPPED = {
    "long_generation": "not measured: nothing here generates hours of speech from a run yet, so the gibberish detector "
    "has nothing to watch",
}
"""What a validation owes and does not measure, by the tag `skipped.<name>` that says so."""
