"""What the experiment on memory is: backbones, ways of remembering on each, and how the arithmetic is checked."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from experiments.harness.identity import plain_values
from experiments.harness.one_seed import OneSeedExperiment
from experiments.harness.study import Scale
from ttt_core.config import InnerModelName

BackboneName = Literal["llama-omni", "moshi", "qwen-7b", "qwen-1.5b"]
TTTLayers = Literal["none", "top-quarter", "every"]
HiddenStates = Literal["none", "last", "all"]
POSITIONS_PER_K = 1024


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A language model at its published dimensions, and how fast speech fills its positions.

    positions_per_second_heard, positions_per_second_said: while the other side speaks, and while the model does.
    said_share: part of a conversation's time in which the model speaks; it hears in the rest.
    """

    name: BackboneName
    positions_per_second_heard: float
    positions_per_second_said: float
    said_share: float = 0.5

    def __post_init__(self) -> None:
        for field in ("positions_per_second_heard", "positions_per_second_said"):
            if not getattr(self, field) > 0:
                raise ValueError(f"backbone {self.name!r}: {field} must be above 0, got {getattr(self, field)}")
        if not 0 <= self.said_share <= 1:
            raise ValueError(f"backbone {self.name!r}: said_share is a part of 1, from 0 to 1; got {self.said_share}")

    @property
    def positions_per_second(self) -> float:
        """Of the conversation, both sides taking their turns."""
        said = self.said_share * self.positions_per_second_said
        return said + (1 - self.said_share) * self.positions_per_second_heard


@dataclass(frozen=True, kw_only=True)
class Arrangement:
    """One arm: what remembers in which layers of one backbone.

    layout: what all backbones call this arrangement; the arm's name is backbone and layout.
    inner_model, ttt_layers: TTT in the place of attention; "top-quarter" is layers 24-31 of 32.
    window, sinks: of every attention that is left; None leaves it as it is published.
    ring_positions: Moshi's ring caches, where they are not the published ones.
    hidden_states: kept for every position by generation: "all" layers', the "last" one's, or "none", which is what
        it takes where each is used as it comes.
    generator_window_frames: what the speech generator (Llama-Omni) remembers of its frames; None keeps all.
    """

    name: str
    backbone: BackboneName
    layout: str
    inner_model: InnerModelName | None = None
    ttt_layers: TTTLayers = "none"
    window: int | None = None
    sinks: int = 0
    ring_positions: int | None = None
    hidden_states: HiddenStates = "none"
    generator_window_frames: int | None = None

    def __post_init__(self) -> None:
        if (self.inner_model is None) != (self.ttt_layers == "none"):
            raise ValueError(
                f"arm {self.name!r}: inner_model and ttt_layers go together; got {self.inner_model!r} in "
                f"{self.ttt_layers!r} layers"
            )
        for field in ("window", "ring_positions", "generator_window_frames"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise ValueError(f"arm {self.name!r}: {field} must be at least 1, or none; got {value}")
        if self.sinks < 0 or (self.sinks and self.window is None):
            raise ValueError(f"arm {self.name!r}: sinks stand in front of a window; got {self.sinks} without one")
        if self.window is not None and self.ttt_layers == "every":
            raise ValueError(f"arm {self.name!r}: TTT in every layer leaves no attention for a window")
        self._check_backbone()

    def _check_backbone(self) -> None:
        moshis = self.ring_positions is not None
        if moshis and (self.backbone != "moshi" or self.window is not None):
            raise ValueError(f"arm {self.name!r}: ring_positions is for Moshi's attention without a mounted window")
        if self.backbone == "moshi" and self.hidden_states != "none":
            raise ValueError(f"arm {self.name!r}: Moshi's generation keeps no hidden states; set hidden_states none")
        if self.generator_window_frames is not None and self.backbone != "llama-omni":
            raise ValueError(f"arm {self.name!r}: only llama-omni has a speech generator to give a window to")


@dataclass(frozen=True, kw_only=True)
class CheckPlan:
    """The small run whose held bytes are compared with what is predicted for it, in the dtype of the large model.

    positions: where bytes are counted, rising; the last must lie behind window and sinks, so that they are filled.
    said_tokens: what the speech generator (Llama-Omni) makes frames of.
    window to mini_batch_size: what takes the arrangement's own values' places.
    """

    batch_sizes: tuple[int, ...]
    positions: tuple[int, ...]
    said_tokens: int
    window: int
    sinks: int
    ring_positions: int
    generator_window_frames: int
    mini_batch_size: int

    def __post_init__(self) -> None:
        _require_rising("check.positions", self.positions, at_least=2)
        _require_rising("check.batch_sizes", self.batch_sizes, at_least=1)
        if self.positions[-1] <= self.window + self.sinks:
            raise ValueError(
                f"check.positions end at {self.positions[-1]}, within window and sinks ({self.window} + {self.sinks}), "
                "where nothing shows whether it is bounded; go on for longer"
            )

    def shrunk(self, arrangement: Arrangement) -> Arrangement:
        """The same arrangement with this plan's sizes."""
        return dataclasses.replace(
            arrangement,
            window=None if arrangement.window is None else self.window,
            sinks=self.sinks if arrangement.sinks else 0,
            ring_positions=None if arrangement.ring_positions is None else self.ring_positions,
            generator_window_frames=None
            if arrangement.generator_window_frames is None
            else self.generator_window_frames,
        )


@dataclass(frozen=True, kw_only=True)
class AllocationPlan:
    """What is allocated at the published dimensions where there is a GPU.

    positions: how full the caches are made. positions_per_call: read at once on the way there.
    """

    batch_sizes: tuple[int, ...]
    positions: tuple[int, ...]
    positions_per_call: int

    def __post_init__(self) -> None:
        _require_rising("allocation.positions", self.positions, at_least=1)
        _require_rising("allocation.batch_sizes", self.batch_sizes, at_least=1)
        if self.positions_per_call < 1:
            raise ValueError(f"allocation.positions_per_call must be at least 1, got {self.positions_per_call}")


@dataclass(frozen=True, kw_only=True)
class MemoryExperiment(OneSeedExperiment):
    """A complete experiment: backbones, their arms, where bytes are told, and how they are checked.

    positions: where totals are given. batch_of: conversations at once, for the totals of a batch.
    gpu_bytes: of the GPU that hours are counted on. mini_batch_size: of TTT; its state does not depend on it.
    allocation: None where nothing large is allocated.
    """

    recipe: str
    scale: Scale
    seed: int
    backbones: tuple[Backbone, ...]
    arms: tuple[Arrangement, ...]
    positions: tuple[int, ...]
    batch_of: int
    gpu_bytes: float
    mini_batch_size: int
    check: CheckPlan
    allocation: AllocationPlan | None

    def __post_init__(self) -> None:
        _require_rising("positions", self.positions, at_least=1)
        for plan in (self.positions, () if self.allocation is None else self.allocation.positions):
            if any(positions % POSITIONS_PER_K for positions in plan):
                raise ValueError(f"positions are named in k: they must be whole multiples of 1,024, got {plan}")
        names = self.arm_names
        if len(set(names)) != len(names):
            raise ValueError(f"arms need different names, got {', '.join(names)}")
        for arm in self.arms:
            self.backbone(arm.backbone)
        if self.batch_of < 1:
            raise ValueError(f"batch_of must be at least 1 conversation, got {self.batch_of}")

    def arm(self, name: str) -> Arrangement:
        return super().arm(name)

    def with_weights(self, digest: str) -> MemoryExperiment:
        raise ValueError("memory takes no --weights: bytes depend on dimensions, and those are the published ones")

    def backbone(self, name: str) -> Backbone:
        """The backbone called `name`. Raises ValueError with the names there are."""
        for backbone in self.backbones:
            if backbone.name == name:
                return backbone
        known = ", ".join(backbone.name for backbone in self.backbones)
        raise ValueError(f"{self.recipe} has no backbone {name!r}; it has {known}")

    def of_arm(self, name: str) -> dict[str, Any]:
        """Everything one arm's result depends on, as plain values: other arms and other backbones are left out."""
        arm = self.arm(name)
        plain = plain_values(self)
        del plain["arms"], plain["backbones"]
        return plain | {"arm": plain_values(arm), "backbone": plain_values(self.backbone(arm.backbone))}


def _require_rising(name: str, values: tuple[int, ...], at_least: int) -> None:
    if len(values) < at_least or list(values) != sorted(set(values)) or values[0] < 1:
        raise ValueError(f"{name} must be {at_least} or more rising numbers from 1 on, got {values}")
