"""A small language model for fact streams, and how it is trained on them."""

from __future__ import annotations

from dataclasses import dataclass

from experiments.harness.counted_module import OptimiserPlan


@dataclass(frozen=True, kw_only=True)
class StreamStage:
    """`steps` optimiser steps on streams of one length.

    longest_distance between a statement and its answer is what fits: positions - 2. shortest_distance: see the spec;
    raised, it asks more often for what lies further back.
    narrowed_window: positions that windowed attention sees during this stage, where that is fewer than its own. TTT
        learns to remember only what attention does not already hand it, and first of all what lies just beyond the
        window: under a window of 16 it recalled nothing after 1,200 steps, under 8 half of everything after 400.
    """

    positions: int
    streams_per_step: int
    steps: int
    shortest_distance: int = 3
    narrowed_window: int | None = None

    def __post_init__(self) -> None:
        for name in ("positions", "streams_per_step", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"StreamStage.{name} must be at least 1, got {getattr(self, name)}")
        if not 2 <= self.shortest_distance < self.positions - 2:
            raise ValueError(
                f"StreamStage.shortest_distance must be from 2 to below positions - 2 = {self.positions - 2}, "
                f"got {self.shortest_distance}"
            )


@dataclass(frozen=True, kw_only=True)
class StreamTraining(OptimiserPlan):
    """stages: one after the other, under one learning-rate schedule. answer_weight: of an answer in the training loss,
    1 for a word."""

    stages: tuple[StreamStage, ...]
    answer_weight: float = 5.0
    validate_every_steps: int
    validation_streams: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.stages:
            raise ValueError("StreamTraining.stages needs at least one stage")

    @property
    def steps(self) -> int:
        return sum(stage.steps for stage in self.stages)

    @property
    def longest_positions(self) -> int:
        """Longest stream seen in training."""
        return max(stage.positions for stage in self.stages)

    def stage_of(self, step: int) -> tuple[int, StreamStage, int]:
        """(number of the stage, the stage, step inside it) of a training step counted from 0."""
        inside = step
        for number, stage in enumerate(self.stages):
            if inside < stage.steps:
                return number, stage, inside
            inside -= stage.steps
        raise ValueError(f"there are {self.steps} steps; step {step} lies behind the last")


@dataclass(frozen=True, kw_only=True)
class ModelSizes:
    """A small full-duplex model of the moshi package: Moshi's temporal transformer without a depth transformer.

    context: positions of its ring and of its attention, C in what follows. pinned: first positions that attention sees
    besides, however far back. With four of them TTT learned to remember under every seed tried, and without any under
    two of three: a head that looks for nothing needs a place to look at.
    """

    dim: int
    num_heads: int
    num_layers: int
    hidden_scale: float = 4.125
    max_period: int = 10000
    context: int
    pinned: int = 0

    @property
    def reach(self) -> int:
        """Positions from an answer back to the earliest statement that attention's context hands it: the answer to a
        question is predicted one position after it is heard."""
        return self.context + 1
