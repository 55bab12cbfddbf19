"""What the experiment is: which trained models speak, for how long, and by what their speech is judged."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Self

from experiments.data.spec import ConversationSpec
from experiments.harness.identity import plain_values
from experiments.harness.one_seed import OneSeedExperiment
from experiments.harness.study import Scale
from experiments.spoken.configuration import SpokenExperiment


@dataclass(frozen=True, kw_only=True)
class SpeakingArm:
    """A trained model that speaks. backbone: of one of the experiment's models; mixer: which arm of that one.

    streams: conversations, the first alone (it is what is timed), the others together where the backbone can. stream_s:
    seconds of conversation that each lasts. bucket_s: of the curves along them.
    first_conversation, conversations_apart: where in the data's conversations the first stream begins to hear, and how
        far from it the next one does; arms of one backbone that are compared in pairs begin alike.
    """

    name: str
    backbone: str
    mixer: str
    streams: int
    stream_s: float
    bucket_s: float
    first_conversation: int = 0
    conversations_apart: int = 1

    def __post_init__(self) -> None:
        if self.streams < 1 or not 0 < self.bucket_s <= self.stream_s:
            raise ValueError(
                f"arm {self.name!r}: streams must be at least 1 (is {self.streams}) and 0 < bucket_s <= stream_s "
                f"(are {self.bucket_s:g} and {self.stream_s:g} s)"
            )


@dataclass(frozen=True, kw_only=True)
class SymbolWindows:
    """How a kind of symbols is measured; see `experiments.quality`."""

    window_s: float
    ngram_order: int
    remembered_symbols: int


@dataclass(frozen=True, kw_only=True)
class LongGenerationExperiment(OneSeedExperiment):
    """Trained models x long streams, with real speech beside them.

    models: of every backbone, the experiment that trains it. arms: who speaks.
    conversations, conversation_positions: how many, and how long, are those whose user turns are heard, and whose
        assistant's turns are what real speech is. They are drawn by a seed of their own, over the training's sentences.
    model_hours, calibration_hours, control_hours: of real speech, for the n-gram model, to calibrate the alarm, and to
        see how often it is raised by real speech that it was not calibrated on.
    known_sentence_share: of all sentences, those that the n-gram model may know.
    """

    recipe: str
    scale: Scale
    seed: int
    models: tuple[SpokenExperiment, ...]
    arms: tuple[SpeakingArm, ...]
    conversations: int
    conversation_positions: int
    model_hours: float
    calibration_hours: float
    control_hours: float
    known_sentence_share: float
    false_alarms_per_hour: float
    windows_to_raise: int
    units: SymbolWindows
    text: SymbolWindows
    sound_window_s: float

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"{self.recipe} needs arms with different names, got {names}")
        for arm in self.arms:
            self.model_of(arm).arm(arm.mixer)

    def starts_from(self, arm: str) -> str | None:
        """The first arm of the same trained model: that one has found it, or trained it."""
        own = self.arm(arm)
        first = next(each for each in self.arms if (each.backbone, each.mixer) == (own.backbone, own.mixer))
        return None if first.name == arm else first.name

    def with_seed(self, seed: int) -> Self:
        return dataclasses.replace(self, seed=seed, models=tuple(model.with_seed(seed) for model in self.models))

    def arm(self, name: str) -> SpeakingArm:
        return super().arm(name)

    def with_weights(self, digest: str) -> Self:
        raise ValueError(f"{self.recipe} speaks with the models that stage 1 trains; give --weights to these recipes")

    def model_of(self, arm: SpeakingArm) -> SpokenExperiment:
        """The experiment that trains the arm's model."""
        for model in self.models:
            if model.backbone == arm.backbone:
                return model
        raise ValueError(f"{self.recipe}: no model of backbone {arm.backbone!r} for arm {arm.name!r}")

    def heard_spec(self, model: SpokenExperiment) -> ConversationSpec:
        """Conversations of that model's sentences that no training has drawn."""
        return dataclasses.replace(
            model.data.spec,
            seed=HEARD_SEED + self.seed,
            positions=self.conversation_positions,
            conversations=self.conversations,
            validation_conversations=0,
        )

    def of_arm(self, name: str) -> dict[str, Any]:
        """What one arm's result depends on."""
        plain = plain_values(self)
        del plain["arms"], plain["models"]
        arm = self.arm(name)
        return plain | {"arm": plain_values(arm), "model": self.model_of(arm).of_arm(arm.mixer)}


HEARD_SEED = 1_000_000
"""Added to the experiment's seed: no training draws its conversations from there on."""
