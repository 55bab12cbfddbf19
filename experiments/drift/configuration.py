"""What the drift experiment is: treatments of the inner weights, random layers to try them on, and a trained model."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

from experiments.fact_streams.configuration import ModelSizes, StreamTraining
from experiments.fact_streams.spec import FactStreamSpec
from experiments.harness.identity import plain_values
from experiments.harness.seeded import SeededExperiment
from ttt_core import TTTConfig
from ttt_core.config import InnerModelName
from ttt_core.precision import POLICIES, PrecisionName

MODEL = "model"
CLAIMED_UPDATES = 3750
"""Updates after which a BF16 state is claimed to give gibberish: five minutes at 12.5 Hz, one update a frame."""

DECAY_SUFFIX = "_decay"
TEST_TIME_DECAY = 0.03
"""Of the distance from the learned start, at every commit."""

VectorKind = Literal["iid", "correlated", "speech"]


@dataclass(frozen=True, kw_only=True)
class Treatment:
    """One way of keeping and updating inner weights, and what it is measured against.

    under_autocast: the layer runs inside torch.autocast(bfloat16), as in a mixed-precision program; guards_autocast
    False lets that into the inner loop. inner_decay: at test time, instead of the layer's own; None leaves that.
    against: name of the reference treatment, its own for a reference.
    """

    name: str
    precision: PrecisionName
    against: str
    under_autocast: bool = False
    guards_autocast: bool = True
    inner_decay: float | None = None

    @property
    def is_reference(self) -> bool:
        return self.against == self.name

    def applied_to(self, config: TTTConfig) -> TTTConfig:
        decay = config.inner_decay if self.inner_decay is None else self.inner_decay
        return dataclasses.replace(
            config, precision=self.precision, guards_autocast=self.guards_autocast, inner_decay=decay
        )


def policy_treatments(reference: PrecisionName) -> tuple[Treatment, ...]:
    """One treatment for each of ttt_core's policies, the reference first."""
    names = [reference, *(name for name in POLICIES if name != reference)]
    return tuple(Treatment(name=name, precision=name, against=reference) for name in names)  # pyright: ignore


def autocast_treatments(reference: PrecisionName) -> tuple[Treatment, ...]:
    """FP32 states under autocast, guarded and not; against a guarded layer of the reference's precision."""
    guarded = Treatment(name="autocast_guarded", precision="fp32", against="autocast_guarded", under_autocast=True)
    if reference != "fp32":
        name = f"autocast_guarded_{reference}"
        against = Treatment(name=name, precision=reference, against=name, under_autocast=True)
        guarded = dataclasses.replace(guarded, against=name)
        return against, guarded, dataclasses.replace(guarded, name="autocast_unguarded", guards_autocast=False)
    return guarded, dataclasses.replace(guarded, name="autocast_unguarded", guards_autocast=False)


def decay_treatments() -> tuple[Treatment, ...]:
    """FP32, and the coarsest policy, on states that forget.

    With the plain update the trained model remembers nothing beyond its window after some thousand positions, in FP32
    too (recall at 16-32 positions 0.47 at first, 0.14 later; with this decay 0.55 to the end): rounding then has no
    memory left to harm.
    """
    names: tuple[PrecisionName, ...] = ("fp32", "bf16")
    return tuple(
        Treatment(
            name=f"{name}{DECAY_SUFFIX}", precision=name, against=f"fp32{DECAY_SUFFIX}", inner_decay=TEST_TIME_DECAY
        )
        for name in names
    )


@dataclass(frozen=True, kw_only=True)
class StateArm:
    """Streams of vectors through random layers of one inner model and mini-batch size.

    step_factors: of the inner model's default step size. streams: per kind of vectors and seed.
    """

    inner_model: InnerModelName
    mini_batch_size: int
    step_factors: tuple[float, ...]
    streams: int
    has_all_seeds: bool = True
    has_autocast: bool = False

    def __post_init__(self) -> None:
        if 1.0 not in self.step_factors:
            raise ValueError(f"step_factors must hold 1.0, the default step size; got {self.step_factors}")
        if self.streams < 1:
            raise ValueError(f"StateArm.streams must be at least 1, got {self.streams}")

    @property
    def name(self) -> str:
        return f"state-{self.inner_model}-b{self.mini_batch_size:02d}"


@dataclass(frozen=True, kw_only=True)
class StatePlan:
    """What all state arms share.

    tokens: of a stream. probe_tokens: at every checkpoint, the next so many tokens give the error of the output and the
    inner loss. correlation: of neighbouring vectors of kind "correlated". speech_utterances: spoken once and strung
    together anew for every stream. tokens_per_call: at most; bounds memory. exponent_from: updates at which the fit
    of the growth exponent begins.
    """

    hidden_size: int
    num_heads: int
    tokens: int
    probe_tokens: int
    kinds: tuple[VectorKind, ...] = ("iid", "correlated", "speech")
    correlation: float = 0.95
    speech_utterances: int
    tokens_per_call: int
    exponent_from: int = 8
    late_share: float = 0.1
    treatments: tuple[Treatment, ...] = policy_treatments("fp64")
    autocast_treatments: tuple[Treatment, ...] = autocast_treatments("fp64")

    def checkpoints(self, mini_batch_size: int) -> tuple[int, ...]:
        """Updates after which a state is looked at: two an octave, the claimed number where it is reached, the last."""
        last = self.tokens // mini_batch_size
        octaves = {round(2 ** (half / 2)) for half in range(2 * math.ceil(math.log2(last)) + 1)}
        return tuple(sorted(n for n in octaves | {CLAIMED_UPDATES, last} if n <= last))


@dataclass(frozen=True, kw_only=True)
class ModelPart:
    """The trained model and the streams that it is run over.

    ttt: replaces the top layer's attention. positions: of a stream. tokens_per_call: of the streaming. position_edges,
    distance_edges: of the buckets. near: facts stated less than that many positions ago are near ones.
    """

    model: ModelSizes
    ttt: TTTConfig
    stream: FactStreamSpec
    training: StreamTraining
    positions: int
    streams: int
    tokens_per_call: int
    position_edges: tuple[int, ...]
    distance_edges: tuple[int, ...]
    near: int
    treatments: tuple[Treatment, ...] = (
        *policy_treatments("fp32"), *autocast_treatments("fp32"), *decay_treatments(),
    )  # fmt: skip

    def __post_init__(self) -> None:
        if self.position_edges[-1] > self.positions:
            raise ValueError(f"the last bucket ends at {self.position_edges[-1]}, behind {self.positions} positions")
        if not set(self.far) <= set(self.distance_edges):
            raise ValueError(f"distance_edges must hold {self.far}, one and four contexts; got {self.distance_edges}")

    @property
    def far(self) -> tuple[int, int]:
        """Distances of facts that the windowed top of the model can't reach without its TTT state; edges of buckets."""
        return self.model.context, 4 * self.model.context

    @property
    def claimed_position(self) -> int:
        """Position of the claimed number of updates."""
        return CLAIMED_UPDATES * self.ttt.mini_batch_size


@dataclass(frozen=True, kw_only=True)
class DriftExperiment(SeededExperiment):
    """State arms x treatments, and one trained model x treatments, over seeds."""

    state: StatePlan
    state_arms: tuple[StateArm, ...]
    model_part: ModelPart

    def seeds_of(self, arm: str) -> tuple[int, ...]:
        return self.seeds if arm == MODEL or self.state_arm(arm).has_all_seeds else self.seeds[:1]

    @property
    def arm_names(self) -> tuple[str, ...]:
        return (MODEL, *(arm.name for arm in self.state_arms))

    def state_arm(self, name: str) -> StateArm:
        """Raises ValueError, with the arms there are, for a name that is none."""
        for arm in self.state_arms:
            if arm.name == name:
                return arm
        raise ValueError(f"{self.recipe} has no arm {name!r}; it has {', '.join(self.arm_names)}")

    def treatments_of(self, arm: StateArm) -> tuple[Treatment, ...]:
        return self.state.treatments + (self.state.autocast_treatments if arm.has_autocast else ())

    def of_arm(self, name: str) -> dict[str, Any]:
        """What the result of one state arm, or of the training, depends on."""
        own: dict[str, Any] = {"recipe": self.recipe, "scale": self.scale, "seed": self.seed, "arm": {"name": name}}
        if name != MODEL:
            return own | {"state": plain_values(self.state), "arm": plain_values(self.state_arm(name))}
        part = self.model_part
        trained = {field: plain_values(getattr(part, field)) for field in ("model", "ttt", "stream", "training")}
        return own | trained

    def of_view(self, treatment: Treatment) -> dict[str, Any]:
        """What the trained model's numbers under one treatment depend on."""
        plan = plain_values(self.model_part)
        return {
            "recipe": self.recipe, "scale": self.scale, "seed": self.seed, "arm": plain_values(treatment),
            "model_part": {name: value for name, value in plan.items() if name != "treatments"},
        }  # fmt: skip
