"""All of the mechanics in one go: metrics for a tracker, arrays for figures."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from experiments.wraparound.mechanics.buffering import BufferingSizes, measure_buffering
from experiments.wraparound.mechanics.cache_cost import CacheCostSizes, measure_cache_cost
from experiments.wraparound.mechanics.causality import CausalitySizes, measure_causality
from experiments.wraparound.mechanics.depth_and_streams import DepthSizes, measure_depth_and_streams
from experiments.wraparound.mechanics.horizon import HorizonSizes, measure_horizon
from experiments.wraparound.mechanics.mimi_ring import MimiRingSizes, measure_mimi_ring
from experiments.wraparound.mechanics.older_ring import OlderRingSizes, measure_older_rings
from experiments.wraparound.mechanics.published_steps import PublishedStepsSizes, measure_published_steps
from experiments.wraparound.mechanics.ring_positions import RingSizes, measure_ring_positions
from experiments.wraparound.mechanics.rotary_precision import RotarySizes, measure_rotary_precision
from experiments.wraparound.mechanics.state_cost import StateCostSizes, measure_state_cost
from experiments.wraparound.mechanics.streamed_against_windowed import StreamedSizes, measure_streamed_against_windowed

Array = NDArray[np.generic]


class Measured(Protocol):
    """What every measurement here gives."""

    def metrics(self) -> dict[str, float]: ...

    def arrays(self) -> dict[str, Array]: ...


@dataclass(frozen=True, kw_only=True)
class MechanicsSizes:
    """Sizes of every measurement; the default is `cpu`."""

    ring: RingSizes = field(default_factory=RingSizes)
    streamed: StreamedSizes = field(default_factory=StreamedSizes)
    causality: CausalitySizes = field(default_factory=CausalitySizes)
    horizon: HorizonSizes = field(default_factory=HorizonSizes)
    rotary: RotarySizes = field(default_factory=RotarySizes)
    older_ring: OlderRingSizes = field(default_factory=OlderRingSizes)
    cache_cost: CacheCostSizes = field(default_factory=CacheCostSizes)
    state_cost: StateCostSizes = field(default_factory=StateCostSizes)
    buffering: BufferingSizes = field(default_factory=BufferingSizes)
    mimi_ring: MimiRingSizes = field(default_factory=MimiRingSizes)
    depth: DepthSizes = field(default_factory=DepthSizes)
    published_steps: PublishedStepsSizes | None = None

    @staticmethod
    def smoke() -> MechanicsSizes:
        """Everything once, in seconds; the times it gives say nothing."""
        return MechanicsSizes(
            streamed=StreamedSizes(positions=24, tokens_per_call=(1, 3), contexts_steps=(7,)),
            causality=CausalitySizes(positions=17, changed=(2, 13), arms=("ring", "ttt_replaces", "ttt_and_window")),
            horizon=HorizonSizes(cases=((1, 5), (3, 4))),
            rotary=RotarySizes(offsets=(0, 3_000, 1_000_000), pairs=8),
            cache_cost=CacheCostSizes(positions=(30, 95, 300), rounds=3),
            state_cost=StateCostSizes(positions=(64, 256, 1_024), rounds=5, mini_batch_steps=16, tokens_per_call=256),
            buffering=BufferingSizes(mini_batch_steps=16, positions=40),
            mimi_ring=MimiRingSizes(layers=1, context_steps=20, frames=14, layer_scales=(0.3,)),
        )

    @staticmethod
    def cpu() -> MechanicsSizes:
        """Minutes on one core; positions, windows and times as the claims name them."""
        return MechanicsSizes()

    @staticmethod
    def gpu() -> MechanicsSizes:
        """As `cpu`, and steps of the published 7B at real positions."""
        return MechanicsSizes(published_steps=PublishedStepsSizes())

    def with_older_releases(self, *folders: Path) -> MechanicsSizes:
        """These sizes, and unpacked older moshi releases whose ring is measured too (see `older_ring`)."""
        return replace(self, older_ring=replace(self.older_ring, folders=folders))


@dataclass(frozen=True, kw_only=True)
class MechanicsReport:
    """metrics: flat names, the part before the last slash is the measurement. arrays: the same way, for figures."""

    metrics: dict[str, float]
    arrays: dict[str, Array]


def measure_mechanics(sizes: MechanicsSizes) -> MechanicsReport:
    """Runs every measurement, the ones that take times first, and says on a bar which."""
    measurements: dict[str, Callable[[], Measured]] = {
        "step times, cache or none": lambda: measure_cache_cost(sizes.cache_cost),
        "step times, far positions": lambda: measure_state_cost(sizes.state_cost),
        "buffering": lambda: measure_buffering(sizes.buffering),
        "ring, step by step": lambda: measure_ring_positions(sizes.ring),
        "streamed against windowed": lambda: measure_streamed_against_windowed(sizes.streamed),
        "causality": lambda: measure_causality(sizes.causality),
        "influence horizon": lambda: measure_horizon(sizes.horizon),
        "rotary precision": lambda: measure_rotary_precision(sizes.rotary),
        "older releases' rings": lambda: measure_older_rings(sizes.older_ring),
        "depth transformer and streams": lambda: measure_depth_and_streams(sizes.depth),
        "Mimi's ring": lambda: measure_mimi_ring(sizes.mimi_ring),
    }
    if (published := sizes.published_steps) is not None:
        measurements["the published 7B's steps"] = lambda: measure_published_steps(published)
    metrics: dict[str, float] = {}
    arrays: dict[str, Array] = {}
    with tqdm(measurements.items(), desc="mechanics", dynamic_ncols=True) as bar:
        for name, measure in bar:
            bar.set_postfix_str(name)
            measured = measure()
            found = measured.metrics()
            # Sections do not overlap, and infinity is what a NaN output is made into: neither may pass unseen.
            assert not metrics.keys() & found.keys(), f"{name} gives metrics that were given before"
            assert all(math.isfinite(value) for value in found.values()), f"{name} gave {found}"
            metrics |= found
            arrays |= measured.arrays()
    return MechanicsReport(metrics=metrics, arrays=arrays)
