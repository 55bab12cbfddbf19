"""What an endless-stream experiment is: which models are trained, and in which ways each is streamed without an end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from experiments.fact_streams.configuration import ModelSizes, StreamTraining
from experiments.fact_streams.spec import FactStreamSpec
from experiments.harness.identity import plain_values
from experiments.harness.seeded import SeededExperiment
from ttt_core import TTTConfig


@dataclass(frozen=True, kw_only=True)
class Training:
    """One trained model.

    ttt: what is mounted in the place of the top layer's attention; None leaves the attention there.
    carries_state: True trains on conversations of several segments, the TTT state carried over their borders by
        truncated backpropagation; False starts every T positions anew. Both read the same number of tokens.
    """

    name: str
    ttt: TTTConfig | None
    carries_state: bool = False

    def __post_init__(self) -> None:
        if self.carries_state and self.ttt is None:
            raise ValueError(f"training {self.name!r} carries a TTT state and has no TTT: give ttt, or do not carry")


@dataclass(frozen=True, kw_only=True)
class View:
    """One way of streaming a trained model; every view is an MLflow run of its own.

    ttt: the layer's configuration while it streams, with options, precision or step size that training did not have;
        None where there is no TTT.
    reset_every: positions after which the TTT state, and nothing else, starts anew; None never resets.
    control: the view of the same training that this one is compared with, stream by stream; None for controls.
    """

    name: str
    training: str
    ttt: TTTConfig | None
    reset_every: int | None = None
    control: str | None = None


@dataclass(frozen=True, kw_only=True)
class StreamPlan:
    """What every view is measured on.

    positions, streams: of the long streams of a seed. longest_distance: between a fact and its question there.
    tokens_per_call: of the streaming; fewer where a view resets more often. probes: moments at which the inner weights
    are looked at, spread evenly over the logarithm of the position. position_edges, distance_edges: of the buckets.
    topic_changes: positions of the topic streams (of `topic_positions`) where every key takes on another habitual
    value; empty measures no topics. topic_bin: positions that are averaged together behind a change.
    """

    positions: int
    streams: int
    longest_distance: int
    tokens_per_call: int
    probes: int
    position_edges: tuple[int, ...]
    distance_edges: tuple[int, ...]
    topic_positions: int = 0
    topic_changes: tuple[int, ...] = ()
    topic_bin: int = 1

    def __post_init__(self) -> None:
        if self.positions % self.tokens_per_call or self.topic_positions % self.tokens_per_call:
            raise ValueError(
                f"streams of {self.positions} and {self.topic_positions} positions can't be cut into calls of "
                f"{self.tokens_per_call}; choose multiples"
            )
        if self.position_edges[-1] != self.positions:
            raise ValueError(f"position_edges end at {self.position_edges[-1]}, streams at {self.positions}")
        for change in self.topic_changes:
            if change % self.tokens_per_call or not 0 < change < self.topic_positions:
                raise ValueError(
                    f"a topic can change between calls, at a multiple of {self.tokens_per_call} inside the "
                    f"{self.topic_positions} positions, not at {change}"
                )


@dataclass(frozen=True, kw_only=True)
class EndlessExperiment(SeededExperiment):
    """Trainings x views x seeds.

    training: of every model; its one stage's `positions` are T. segments_per_conversation: of T positions, where the
    state is carried. carries_from_step: before it, carried trainings read the reset ones' batches: carried from the
    first step on, memory did not form (recall 0.03 after 600 steps on one seed, 0.49 without carrying).
    words_left_out: of the loss, at the start of a segment that goes on where another ended, since attention does not
    see across the border.
    """

    model: ModelSizes
    stream: FactStreamSpec
    training: StreamTraining
    segments_per_conversation: int
    carries_from_step: int
    words_left_out: int
    trainings: tuple[Training, ...]
    views: tuple[View, ...]
    plan: StreamPlan

    def __post_init__(self) -> None:
        if len(self.training.stages) != 1:
            raise ValueError(
                f"{self.recipe} trains on streams of one length T; it was given {len(self.training.stages)} stages"
            )
        if not 0 <= self.words_left_out < self.trained_positions:
            raise ValueError(
                f"words_left_out must be from 0 to below T = {self.trained_positions}, got {self.words_left_out}"
            )
        if not 0 <= self.carries_from_step < self.training.steps:
            raise ValueError(
                f"carries_from_step must be from 0 to below the {self.training.steps} steps of training, got "
                f"{self.carries_from_step}"
            )
        if self.segments_per_conversation < 2:
            raise ValueError(
                f"a state is carried over segments_per_conversation >= 2 segments, got {self.segments_per_conversation}"
            )
        names = [training.name for training in self.trainings]
        views = {view.name: view for view in self.views}
        if len(set(names)) != len(names) or len(views) != len(self.views):
            raise ValueError(f"trainings and views need different names; got {names} and {list(views)}")
        for view in self.views:
            if view.training not in names:
                raise ValueError(f"view {view.name!r} is of training {view.training!r}; there are {', '.join(names)}")
            if view.control is not None and view.control not in views:
                raise ValueError(f"view {view.name!r} is compared with {view.control!r}, which is no view")
            shorter = view.reset_every is not None and self.plan.tokens_per_call % view.reset_every == 0
            if not (view.reset_every is None or shorter or view.reset_every % self.plan.tokens_per_call == 0):
                raise ValueError(
                    f"view {view.name!r} resets every {view.reset_every} positions, which neither divides "
                    f"{self.plan.tokens_per_call} tokens per call nor is a multiple of them"
                )
            if (view.ttt is None) != (self.training_named(view.training).ttt is None):
                raise ValueError(f"view {view.name!r} and its training must both have TTT, or neither")

    @property
    def trained_positions(self) -> int:
        """T: positions that gradients flow through in training."""
        return self.training.longest_positions

    @property
    def arm_names(self) -> tuple[str, ...]:
        return tuple(training.name for training in self.trainings)

    def training_named(self, name: str) -> Training:
        """The row called `name`. Raises ValueError, with those there are, when there is none."""
        for training in self.trainings:
            if training.name == name:
                return training
        raise ValueError(f"{self.recipe} has no arm {name!r}; it has {', '.join(self.arm_names)}")

    def views_of(self, training: str) -> tuple[View, ...]:
        return tuple(view for view in self.views if view.training == training)

    def of_arm(self, name: str) -> dict[str, Any]:
        """What one training's result depends on."""
        training = self.training_named(name)
        own: dict[str, Any] = {
            "recipe": self.recipe,
            "scale": self.scale,
            "seed": self.seed,
            "model": plain_values(self.model),
            "stream": plain_values(self.stream),
            "training": plain_values(self.training),
            "arm": plain_values(training),
        }
        if training.carries_state:
            own["carrying"] = {
                "segments": self.segments_per_conversation,
                "from_step": self.carries_from_step,
                "words_left_out": self.words_left_out,
            }
        return own

    def of_view(self, view: View) -> dict[str, Any]:
        """What one view's numbers depend on: its training and how it is streamed."""
        own = self.of_arm(view.training)
        return own | {"trained": own["arm"], "arm": plain_values(view), "plan": plain_values(self.plan)}
