"""How a run is validated at each scale: what is read, and how long is spoken."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from experiments.harness.study import Scale
from experiments.spoken.configuration import require_positive


@dataclass(frozen=True, kw_only=True)
class ValidationPlan:
    """What is read and spoken.

    positions: of every stream. streams: how many, the same for every run of the same data; an interval is over them.
    edges: of the buckets of loss by position and of recall by distance.
    forgets_every: the control reads the same streams with a fresh memory after so many positions, so that what is hard
        about a place is hard for both.
    memory_positions: read at once by one and by four samples, to see what a sample takes.
    speech_s: seconds of the one stream that is spoken; speech_bucket_s: of the curves along it.
    """

    positions: int
    streams: int
    edges: tuple[int, ...]
    forgets_every: int
    memory_positions: int
    speech_s: float
    speech_bucket_s: float

    def __post_init__(self) -> None:
        require_positive(
            self, "positions", "streams", "forgets_every", "memory_positions", "speech_s", "speech_bucket_s"
        )
        if len(self.edges) < 3 or any(first >= end for first, end in pairwise(self.edges)):
            raise ValueError(f"edges must be three or more rising positions, got {self.edges}")


EDGES = (0, 1000, 5000, 10000, 30000, 60000)
"""1k, 5k, 10k, 30k, 60k: the positions that claim C23 is about, as bins of the same streams."""

PLANS: dict[Scale, ValidationPlan] = {
    "smoke": ValidationPlan(
        positions=1024, streams=2, edges=(0, 256, 512, 1024), forgets_every=256, memory_positions=256, speech_s=20.0,
        speech_bucket_s=10.0,
    ),
    "cpu": ValidationPlan(
        positions=65536, streams=4, edges=EDGES, forgets_every=8192, memory_positions=8192, speech_s=600.0,
        speech_bucket_s=60.0,
    ),
    "gpu": ValidationPlan(
        positions=65536, streams=20, edges=EDGES, forgets_every=8192, memory_positions=8192, speech_s=3600.0,
        speech_bucket_s=300.0,
    ),
    "full": ValidationPlan(
        positions=65536, streams=20, edges=EDGES, forgets_every=8192, memory_positions=8192, speech_s=3600.0,
        speech_bucket_s=300.0,
    ),
}  # fmt: skip
