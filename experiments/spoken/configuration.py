"""What an experiment on spoken conversations is: every number that changes its result, in frozen records.

What a backbone adds to them (its own dimensions, the loss on its speech) is in its own folder.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, Self

from experiments.data.spec import ConversationSpec
from experiments.harness.counted_module import OptimiserPlan
from experiments.harness.identity import plain_values
from experiments.harness.one_seed import OneSeedExperiment
from experiments.harness.study import Scale
from experiments.spoken.recorded_plan import RecordedPlan
from ttt_core import TTTConfig

Trained = Literal["everything", "upper_mixers_and_speech"]
Precision = Literal["32-true", "bf16-mixed", "bf16-true"]


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One row of an experiment: what remembers, in which layers. All else is equal between arms.

    ttt: the layer that takes the place of attention in `upper_layers`; None keeps their attention.
    upper_window: most recent positions that the attention of `upper_layers` sees, where it is kept; None: all.
    lower_window: the same for the layers below; None: all.
    sinks: first positions of the conversation pinned in front of every window.
    """

    name: str
    upper_layers: tuple[int, ...]
    ttt: TTTConfig | None = None
    upper_window: int | None = None
    lower_window: int | None = None
    sinks: int = 0

    def __post_init__(self) -> None:
        if self.ttt is not None and self.upper_window is not None:
            raise ValueError(
                f"arm {self.name!r} replaces the attention of its upper layers by TTT: it has no upper_window"
            )
        for field in ("upper_window", "lower_window"):
            window = getattr(self, field)
            if window is not None and window < 1:
                raise ValueError(f"arm {self.name!r}: {field} must be at least 1 position, or none; got {window}")


@dataclass(frozen=True, kw_only=True)
class TrainingStage:
    """Part of a curriculum: `steps` optimiser steps on conversations of one length.

    positions: how long a conversation is drawn, in positions of a model that hears 10 of them a second and reads text
        in between; a frame-synchronous model reads about twice as many frames, and all of them.
    conversations: size of the set they are drawn from.
    early_share, subjects_per_conversation: see `ConversationSpec`; with few subjects, all taken up early, a stage asks
        for facts as often as it can, at short distances.
    """

    positions: int
    conversations: int
    conversations_per_step: int
    steps: int
    early_share: float = 0.0
    subjects_per_conversation: int | None = None

    def __post_init__(self) -> None:
        require_positive(self, "positions", "conversations", "conversations_per_step", "steps")


@dataclass(frozen=True, kw_only=True)
class DataPlan:
    """Which conversations are trained and validated on.

    spec: what all conversations are made from; its own length and validation split are what is validated on. Its seed
        is not the run's seed: every seed of an experiment reads the same conversations, and its data is built once.
    """

    spec: ConversationSpec
    curriculum: tuple[TrainingStage, ...]

    def __post_init__(self) -> None:
        if not self.curriculum:
            raise ValueError("data.curriculum needs at least one stage")
        if self.spec.validation_conversations < 1:
            raise ValueError("data.spec.validation_conversations must be at least 1: every arm is measured on them")

    @property
    def steps(self) -> int:
        return sum(stage.steps for stage in self.curriculum)

    @property
    def chance_recall(self) -> float:
        """How often a guess at a fact's value is right."""
        return self.spec.chance_recall

    @property
    def has_words(self) -> bool:
        """Every sentence was written before it was spoken."""
        return True

    def stage_spec(self, stage: TrainingStage) -> ConversationSpec:
        """What a stage's conversations are made from."""
        own = dataclasses.replace(
            self.spec,
            positions=stage.positions,
            conversations=stage.conversations,
            early_share=stage.early_share,
            subjects_per_conversation=stage.subjects_per_conversation,
        )
        return own if own == self.spec else dataclasses.replace(own, validation_conversations=0)

    def stage_of(self, step: int) -> tuple[int, TrainingStage, int]:
        """(number of the stage, the stage, step inside it) of a training step counted from 0."""
        for number, stage in enumerate(self.curriculum):
            if step < stage.steps:
                return number, stage, step
            step -= stage.steps
        raise ValueError(f"the curriculum has {self.steps} steps; step {self.steps + step} lies behind its end")


@dataclass(frozen=True, kw_only=True)
class TrainingPlan(OptimiserPlan):
    """How the weights are learned.

    trains: everything but what is frozen for good; or, for a pretrained language model too large for an optimiser's
        state, what mixes positions in the upper layers (TTT, or the attention it is compared with) and what reads and
        speaks speech.
    speech_weight: weight of the loss on the speech that is said, beside 1 for that on the text.
    fact_value_weight: weight of an asked value's tokens in the training loss, 1 for all others. They are one token in
        thirty and the only ones that need a long memory; a short training hears of them through their weight.
    inner_warmup_steps: the inner step size rises from a tenth of itself to itself over these steps (0: constant).
    """

    trains: Trained = "everything"
    speech_weight: float = 1.0
    fact_value_weight: float = 1.0
    inner_warmup_steps: int = 0
    precision: Precision = "32-true"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "fact_value_weight")


@dataclass(frozen=True, kw_only=True)
class LoraPlan:
    """Low-rank adapters (Hu et al. 2021), by peft, on layers whose own weights stay as they are.

    modules: names of the linear maps that are adapted, in the layers below the arms' upper ones, whose own attention
        is trained whole or replaced. rank: of what is added; scaled by alpha / rank.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")

    def __post_init__(self) -> None:
        require_positive(self, "rank", "alpha")
        if not self.modules:
            raise ValueError("LoraPlan.modules is empty; name the linear maps to adapt, such as q_proj, or set no lora")


@dataclass(frozen=True, kw_only=True)
class DecoderTraining(TrainingPlan):
    """What a language model of transformers adds.

    segment_positions: truncated backpropagation: a conversation is read in segments of that many positions, with the
        state carried and the gradient cut between them. None: one graph for the whole conversation.
    lora: low-rank adapters on the layers below the arms' upper ones; they are trained where `groups` hold "lora_" or
        "others", and whatever `trains` says of the weights that they adapt. None: none.
    """

    segment_positions: int | None = None
    gradient_checkpointing: bool = False
    lora: LoraPlan | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gradient_checkpointing and self.segment_positions is not None:
            # transformers drops the cache while it checkpoints, and the carried state with it, without a word.
            raise ValueError("gradient_checkpointing and segment_positions exclude each other; set one of them")
        if self.segment_positions is not None and self.segment_positions < 1:
            raise ValueError(f"segment_positions must be at least 1, or none; got {self.segment_positions}")


@dataclass(frozen=True, kw_only=True)
class EvaluationPlan:
    """What is measured, and how often (in steps).

    position_edges, distance_edges: edges of the buckets of the loss by position and of the recall by distance.
    seconds_edges: of both again, by seconds: how long a position lasts differs between backbones.
    speech_turns: assistant turns per validation conversation whose speech loss is measured (the first ones).
    sample_new_positions: what the sample left behind may take.
    """

    validate_every_steps: int
    checkpoint_every_steps: int
    monitor_every_steps: int = 100
    position_edges: tuple[int, ...] = (0, 256, 1024, 2048, 4096, 8192)
    distance_edges: tuple[int, ...] = (0, 256, 1024, 2048, 4096, 8192)
    seconds_edges: tuple[int, ...] = (0, 15, 60, 120, 240, 480, 960, 1920)
    speech_turns: int = 2
    sample_new_positions: int = 24

    def __post_init__(self) -> None:
        require_positive(self, "validate_every_steps", "checkpoint_every_steps", "monitor_every_steps")
        for name in ("position_edges", "distance_edges", "seconds_edges"):
            edges = getattr(self, name)
            if len(edges) < 2 or list(edges) != sorted(set(edges)):
                raise ValueError(f"{name} must be two or more rising numbers, got {edges}")


@dataclass(frozen=True, kw_only=True)
class SpokenExperiment(OneSeedExperiment):
    """A complete experiment: one model, one set of data, one way of training, several arms.

    Every backbone has a child of this that adds its model's configuration, and narrows what it trains with.
    backbone: name of the folder beside this file, with hyphens. data: synthetic conversations, or own recordings.
    start_run_id: run whose trained weights every arm begins with; None: random ones, or those of a checkpoint folder.
    """

    recipe: str
    backbone: str
    scale: Scale
    seed: int
    data: DataPlan | RecordedPlan
    training: TrainingPlan
    evaluation: EvaluationPlan
    arms: tuple[Arm, ...]
    weights_digest: str | None = None
    start_run_id: str | None = None

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        if len(set(names)) != len(names) or not names:
            raise ValueError(f"{self.recipe} needs arms with different names, got {names}")
        for arm in self.arms:
            outside = [layer for layer in arm.upper_layers if not 0 <= layer < self.layers]
            if outside:
                raise ValueError(f"arm {arm.name!r} names layers {outside}; the model has layers 0-{self.layers - 1}")
            if arm.ttt is not None and arm.ttt.hidden_size != self.width:
                raise ValueError(
                    f"arm {arm.name!r} has TTT of hidden_size {arm.ttt.hidden_size} "
                    f"on a model of hidden_size {self.width}"
                )

    @property
    def layers(self) -> int:
        """Layers of the model that the arms differ in."""
        raise NotImplementedError

    @property
    def width(self) -> int:
        """Hidden size of those layers."""
        raise NotImplementedError

    def arm(self, name: str) -> Arm:
        return super().arm(name)

    def with_weights(self, digest: str) -> Self:
        return dataclasses.replace(self, weights_digest=digest)

    def of_arm(self, name: str) -> dict[str, Any]:
        """Everything one arm's result depends on, as plain values: this configuration with the other arms left out."""
        plain = plain_values(self)
        del plain["arms"]
        plain["arm"] = plain_values(self.arm(name))
        return plain


def require_positive(record: Any, *names: str) -> None:
    for name in names:
        if not getattr(record, name) > 0:
            raise ValueError(f"{type(record).__name__}.{name} must be above 0, got {getattr(record, name)}")


def with_fields(record: Any, **changes: Any) -> Any:
    """A dataclass with those of the changes whose fields it has: backbones train with different ones."""
    known = {field.name for field in dataclasses.fields(record)}
    return dataclasses.replace(record, **{name: value for name, value in changes.items() if name in known})
