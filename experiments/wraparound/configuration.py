"""What the wraparound experiment is: which models are trained, and in which ways each of them is looked at."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from experiments.fact_streams.configuration import ModelSizes, StreamTraining
from experiments.fact_streams.spec import FactStreamSpec
from experiments.harness.identity import plain_values
from experiments.harness.study import Scale
from experiments.wraparound.mechanics.measure import MechanicsSizes
from ttt_core import TTTConfig
from ttt_core.mounting import MountMode

MECHANICS = "mechanics"
TrainedLength = Literal["inside", "past"]
ViewKind = Literal["batched", "streamed", "recomputed", "first_positions_hidden", "free_running", "ttt_state_reset"]


@dataclass(frozen=True, kw_only=True)
class Training:
    """One trained model.

    length: "inside" never sees more than `context` positions, "past" sees several times as many.
    window: positions its attention sees in training, None for all. top_window: those of the top layer, where they
    are others. sinks: first positions pinned in front of the window.
    ttt, mode: what is mounted in the top layer; None leaves its attention alone. seed_count: seeds it is trained with.
    """

    name: str
    length: TrainedLength
    window: int | None
    top_window: int | None = None
    sinks: int = 0
    ttt: TTTConfig | None = None
    mode: MountMode = "replace"
    seed_count: int


@dataclass(frozen=True, kw_only=True)
class View:
    """One way of running a trained model over long streams; every view is an MLflow run of its own.

    batched: all positions at once, under the window's mask.
    streamed: one position a call through the package's streaming (its ring, where the attention is plain).
    recomputed: every position with a cache that holds the last positions alone: streaming begun anew, which the package
        always begins with its start token, and fed the last `window - 1`; or, without the start token, the last
        `window`.
    first_positions_hidden: streamed up to the window's end, with the first `hidden` positions masked from half the
        window on, as if the ring had overwritten them early.
    free_running: the model reads back the words that it says.
    ttt_state_reset: streamed, with the TTT state (and nothing else) started anew every `reset_every` positions.
    """

    name: str
    training: str
    kind: ViewKind
    window: int | None
    sinks: int = 0
    hidden: int = 0
    reset_every: int | None = None
    has_start_token: bool = True


@dataclass(frozen=True, kw_only=True)
class ViewPlan:
    """What every view is measured on: many short streams around the first wrap, and fewer long ones.

    onset_streams: of two contexts, with distances as in the training inside the context, so that what is heard before
        the wrap and after it is alike. onset_edges: of their buckets.
    positions: of a long stream, at least 16 contexts. streams: long ones a seed. recomputed_streams: of these, the
        ones that are recomputed at every position. position_edges, distance_edges: of the buckets.
    near: facts stated less than that many positions ago are near ones, which every window holds.
    """

    onset_streams: int
    onset_edges: tuple[int, ...]
    positions: int
    streams: int
    recomputed_streams: int
    position_edges: tuple[int, ...]
    distance_edges: tuple[int, ...]
    near: int


@dataclass(frozen=True, kw_only=True)
class WraparoundExperiment:
    """Trainings x views x seeds, and the mechanics of the ring.

    trainings: by their length, "inside" or "past", which differ in nothing but the streams they are trained on.
    """

    recipe: str
    scale: Scale
    seed: int
    model: ModelSizes
    stream: FactStreamSpec
    inside: StreamTraining
    past: StreamTraining
    trainings: tuple[Training, ...]
    views: tuple[View, ...]
    view_plan: ViewPlan
    mechanics: MechanicsSizes

    def __post_init__(self) -> None:
        if self.model.pinned:
            raise ValueError(
                "each training of this experiment says itself how many sinks it has: leave model.pinned at 0"
            )
        names = [training.name for training in self.trainings]
        if len(set(names)) != len(names) or MECHANICS in names:
            raise ValueError(f"trainings need different names, none of them {MECHANICS!r}; got {names}")
        views = [view.name for view in self.views]
        if len({*views, *names}) != len(views) + len(names):
            raise ValueError(f"views need names that no other view and no training has, got {views} beside {names}")
        for view in self.views:
            if view.training not in names:
                raise ValueError(f"view {view.name!r} is of training {view.training!r}; there are {', '.join(names)}")
        if self.inside.longest_positions > self.model.context:
            raise ValueError(
                f"the 'inside' training reads {self.inside.longest_positions} positions, more than the context of "
                f"{self.model.context}"
            )
        if self.past.longest_positions <= self.model.context:
            raise ValueError(
                f"the 'past' training reads {self.past.longest_positions} positions, not more than the context of "
                f"{self.model.context}"
            )

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(range(self.seed, self.seed + max(training.seed_count for training in self.trainings)))

    def seeds_of(self, arm: str) -> tuple[int, ...]:
        return self.seeds[: 1 if arm == MECHANICS else self.training(arm).seed_count]

    @property
    def arm_names(self) -> tuple[str, ...]:
        return (MECHANICS, *(training.name for training in self.trainings))

    def starts_from(self, arm: str) -> str | None:
        return None

    def with_seed(self, seed: int) -> WraparoundExperiment:
        rows = tuple(dataclasses.replace(training, seed_count=1) for training in self.trainings)
        return dataclasses.replace(self, seed=seed, trainings=rows)

    def with_weights(self, digest: str) -> WraparoundExperiment:
        raise ValueError(f"{self.recipe} trains its models from scratch; --weights has nothing to load into")

    def training(self, name: str) -> Training:
        """The row called `name`. Raises ValueError, with those there are, when there is none."""
        for training in self.trainings:
            if training.name == name:
                return training
        raise ValueError(f"{self.recipe} has no arm {name!r}; it has {', '.join(self.arm_names)}")

    def stream_training(self, training: Training) -> StreamTraining:
        return self.inside if training.length == "inside" else self.past

    def views_of(self, training: str) -> tuple[View, ...]:
        return tuple(view for view in self.views if view.training == training)

    def of_arm(self, name: str) -> dict[str, Any]:
        """What one training's result depends on; of the mechanics, their sizes."""
        own: dict[str, Any] = {"recipe": self.recipe, "scale": self.scale, "seed": self.seed, "arm": {"name": name}}
        if name == MECHANICS:
            return own | {"mechanics": plain_values(self.mechanics)}
        training = self.training(name)
        return own | {
            "model": plain_values(self.model),
            "stream": plain_values(self.stream),
            "training": plain_values(self.stream_training(training)),
            "arm": plain_values(dataclasses.replace(training, seed_count=1)),
        }

    def of_view(self, view: View) -> dict[str, Any]:
        """What one view's numbers depend on: its training and how it is looked at."""
        own = self.of_arm(view.training)
        return own | {"trained": own["arm"], "arm": plain_values(view), "view_plan": plain_values(self.view_plan)}
