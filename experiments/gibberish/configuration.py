"""What a gibberish experiment is: two trainings, one stream, and every suspect let loose alone and together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from experiments.endless.configuration import View
from experiments.fact_streams.configuration import ModelSizes, StreamTraining
from experiments.fact_streams.spec import FactStreamSpec
from experiments.harness.identity import plain_values
from experiments.harness.seeded import SeededExperiment
from ttt_core import TTTConfig

Suspect = Literal["wrap", "bf16", "age", "leak"]
SUSPECTS: tuple[Suspect, ...] = ("wrap", "bf16", "age", "leak")

AgeCure = Literal["decay", "reset", "renormalise"]

CAUSAL, LEAKY = "causal", "leaky"
"""The two trainings: mini-batches whose rows see no later token, and mini-batches whose every row sees the whole."""

SOUND, EVERYTHING = "sound", "everything"


@dataclass(frozen=True, kw_only=True)
class SuspectView(View):
    """One way of streaming a trained model. `ttt` and `reset_every` say how; `suspects` says what is wrong with it.

    wrap: the ring overwrites the first positions once it is full; without it they stay pinned. bf16: inner weights are
    kept in BF16; without it FP32. age: the state is never reset and forgets nothing; without it, `age_cure`. leak: the
    weights come from the leaky training.
    """

    suspects: tuple[Suspect, ...]
    age_cure: AgeCure | None

    def __post_init__(self) -> None:
        if ("leak" in self.suspects) != (self.training == LEAKY):
            raise ValueError(f"view {self.name!r} has the leak if, and only if, its training is {LEAKY!r}")
        if ("age" in self.suspects) != (self.age_cure is None):
            raise ValueError(f"view {self.name!r} needs either the suspect 'age' or a cure of it")

    @property
    def wraps(self) -> bool:
        return "wrap" in self.suspects


@dataclass(frozen=True, kw_only=True)
class GibberishExperiment(SeededExperiment):
    """Two trainings x views x seeds, all views of a seed on the same streams.

    model: the attention below TTT sees the last `context` positions and the `pinned` first ones, as long as the ring
    holds them. ring_positions: that the ring holds, as many as training's streams have. positions, streams: of the long
    streams. position_edges: of their buckets. old_from: where "old" begins, an edge. tokens_per_call: of the streaming.
    probes: moments at which the inner weights are looked at. harm_nats, harm_recall: of a loss per word, and of a share
    recalled, from which on a difference counts as damage.
    """

    model: ModelSizes
    ring_positions: int
    frame_rate_hz: float
    stream: FactStreamSpec
    training: StreamTraining
    ttt: TTTConfig
    views: tuple[SuspectView, ...]
    positions: int
    streams: int
    tokens_per_call: int
    probes: int
    position_edges: tuple[int, ...]
    old_from: int
    harm_nats: float
    harm_recall: float

    def __post_init__(self) -> None:
        trained = self.training.longest_positions
        if self.ring_positions != trained:
            raise ValueError(
                f"the ring must wrap where training ended, or two suspects strike at once that are not told apart: it "
                f"holds {self.ring_positions} positions and training's streams have {trained}"
            )
        if self.model.pinned < 1:
            raise ValueError("there is nothing for the ring to overwrite: the model needs pinned first positions")
        if self.positions % self.tokens_per_call or self.ring_positions % self.tokens_per_call:
            raise ValueError(
                f"streams of {self.positions} positions and a ring of {self.ring_positions} must both be multiples of "
                f"the {self.tokens_per_call} tokens of a call"
            )
        if self.position_edges[-1] != self.positions or self.old_from not in self.position_edges:
            raise ValueError(f"position_edges must hold old_from = {self.old_from} and end at {self.positions}")
        names = [view.name for view in self.views]
        if len(set(names)) != len(names) or SOUND not in names:
            raise ValueError(f"views need different names, one of them {SOUND!r}; got {names}")

    @property
    def trained_positions(self) -> int:
        """T: positions of training's streams."""
        return self.training.longest_positions

    @property
    def arm_names(self) -> tuple[str, ...]:
        return (CAUSAL, LEAKY)

    def views_of(self, training: str) -> tuple[SuspectView, ...]:
        return tuple(view for view in self.views if view.training == training)

    def minutes(self, position: float) -> float:
        """Of speech, before a position."""
        return position / self.frame_rate_hz / 60

    def of_arm(self, name: str) -> dict[str, Any]:
        """What one training's result depends on."""
        if name not in self.arm_names:
            raise ValueError(f"{self.recipe} has no arm {name!r}; it has {', '.join(self.arm_names)}")
        return {
            "recipe": self.recipe,
            "scale": self.scale,
            "seed": self.seed,
            "model": plain_values(self.model),
            "stream": plain_values(self.stream),
            "training": plain_values(self.training),
            "ttt": plain_values(self.ttt),
            "arm": name,
        }

    def of_view(self, view: SuspectView) -> dict[str, Any]:
        """What one view's numbers depend on: its training and how it is streamed."""
        measured = {
            "ring_positions": self.ring_positions,
            "positions": self.positions,
            "streams": self.streams,
            "position_edges": list(self.position_edges),
        }
        return self.of_arm(view.training) | {"trained": view.training, "arm": plain_values(view), "plan": measured}
