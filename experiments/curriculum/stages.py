"""Stages 2 to 4: stage 1's model and arm on conversations of 16k, 32k and 64k positions, from trained weights."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TypeVar

from experiments.harness.parameter_groups import ALL_OTHERS, UPPER_MIXERS, ParameterGroup
from experiments.harness.study import Scale
from experiments.spoken.configuration import (
    DataPlan,
    EvaluationPlan,
    LoraPlan,
    SpokenExperiment,
    TrainingPlan,
    TrainingStage,
    with_fields,
)
from experiments.spoken.frame_training import FrameTraining

CONTINUED_ARM, CONTROL_ARM = "ttt-mlp", "sliding-window"
LATER_STAGES = (2, 3, 4)
LAST_STAGE = LATER_STAGES[-1]
FRAMES_A_POSITION = 2
"""Conversations are drawn by what Llama-Omni reads of them. In frames they are 2.09 times as long (4,096 positions came
to 8,540 frames), in a transcript's tokens 0.93 times: frames are drawn half as long, transcripts as they are.
"""

Spoken = TypeVar("Spoken", bound=SpokenExperiment)


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """What the scales differ in.

    first_positions: of stage 1's conversations; every later stage doubles them. steps: of stages 2, 3 and 4, of
        `conversations_per_step` of `conversations` each.
    rate: peak learning rates as a share of stage 1's. mixers_alone: share of a stage's steps in which what mixes
        positions in the upper layers (TTT) is trained alone.
    segment_positions: of truncated backpropagation, the state carried; half as many frames, in which Moshi's attention
        costs the square (1,030 frames/s on a core in segments of 2,048, 243 in one of 8,252). edges: of positions and
        distances.
    lora: of the layers below, for language models of transformers.
    """

    first_positions: int
    steps: tuple[int, int, int]
    conversations: tuple[int, int, int]
    conversations_per_step: tuple[int, int, int]
    validation_conversations: int
    rate: float
    mixers_alone: float
    warmup_steps: int
    segment_positions: int
    checkpoint_every_steps: int
    monitor_every_steps: int
    edges: tuple[int, ...]
    lora: LoraPlan | None = None

    def positions(self, stage: int) -> int:
        """Of a stage's conversations: 8k, 16k, 32k, 64k."""
        return self.first_positions * 2 ** (stage - 1)


LONG_EDGES = (0, 1024, 4096, 8192, 16384, 32768, 65536)
PLANS: dict[Scale, StagePlan] = {
    "smoke": StagePlan(
        first_positions=256, steps=(2, 2, 2), conversations=(2, 2, 2), conversations_per_step=(1, 1, 1),
        validation_conversations=1, rate=0.3, mixers_alone=0.5, warmup_steps=1, segment_positions=384,
        checkpoint_every_steps=1, monitor_every_steps=1, edges=(0, 256, 512, 1024, 2048),
    ),
    "cpu": StagePlan(
        first_positions=8192, steps=(24, 16, 12), conversations=(24, 16, 12), conversations_per_step=(1, 1, 1),
        validation_conversations=3, rate=0.3, mixers_alone=0.25, warmup_steps=2, segment_positions=4096,
        checkpoint_every_steps=2, monitor_every_steps=4, edges=LONG_EDGES,
    ),
    "gpu": StagePlan(
        first_positions=8192, steps=(800, 600, 400), conversations=(3200, 1200, 400), conversations_per_step=(4, 2, 1),
        validation_conversations=16, rate=0.3, mixers_alone=0.25, warmup_steps=50, segment_positions=8192,
        checkpoint_every_steps=50, monitor_every_steps=25, edges=LONG_EDGES,
    ),
    "full": StagePlan(
        first_positions=8192, steps=(800, 600, 400), conversations=(800, 600, 400), conversations_per_step=(1, 1, 1),
        validation_conversations=16, rate=0.5, mixers_alone=0.5, warmup_steps=50, segment_positions=4096,
        checkpoint_every_steps=25, monitor_every_steps=25, edges=LONG_EDGES, lora=LoraPlan(),
    ),
}  # fmt: skip


def first_stage_arms(first: Spoken, names: tuple[str, ...] = (CONTINUED_ARM,)) -> Spoken:
    """Stage 1 with those of its arms alone that go on."""
    return dataclasses.replace(first, arms=tuple(first.arm(name) for name in names))


def later_stage(
    first: Spoken, stage: int, recipe: str, arms: tuple[str, ...] = (CONTINUED_ARM,), plan: StagePlan | None = None
) -> Spoken:
    """A stage behind the first: the model, the arms and the vocabularies of stage 1, and nothing else of it.

    Every stage is measured on the same conversations of stage 4's length, so that what a stage gave is the difference
    to the one before.

    first: the backbone's stage 1. plan: the scale's where none is given.
    """
    if stage not in LATER_STAGES:
        raise ValueError(f"stage {stage} is none that goes on from another; there are {LATER_STAGES}")
    plan = plan or PLANS[first.scale]
    steps = plan.steps[LATER_STAGES.index(stage)]
    return dataclasses.replace(
        first,
        recipe=recipe,
        model=with_fields(first.model, gradient_checkpointing=False),
        data=_data(first, stage, plan),
        training=_training(first.training, steps, plan),
        evaluation=_evaluation(first.evaluation, steps, plan),
        arms=tuple(first.arm(name) for name in arms),
    )


def reads_frames(experiment: SpokenExperiment) -> bool:
    return isinstance(experiment.training, FrameTraining)


def drawn_positions(experiment: SpokenExperiment, positions: int) -> int:
    """How long conversations are drawn that are to have so many of the backbone's own positions."""
    return positions // FRAMES_A_POSITION if reads_frames(experiment) else positions


def _data(first: SpokenExperiment, stage: int, plan: StagePlan) -> DataPlan:
    own, last = LATER_STAGES.index(stage), LATER_STAGES.index(LAST_STAGE)
    spec = dataclasses.replace(
        first.data.spec,
        positions=drawn_positions(first, plan.positions(LAST_STAGE)),
        conversations=plan.conversations[last],
        validation_conversations=plan.validation_conversations,
    )
    training = TrainingStage(
        positions=drawn_positions(first, plan.positions(stage)),
        conversations=plan.conversations[own],
        conversations_per_step=plan.conversations_per_step[own],
        steps=plan.steps[own],
    )
    return DataPlan(spec=spec, curriculum=(training,))


def _training(first: TrainingPlan, steps: int, plan: StagePlan) -> TrainingPlan:
    groups = (
        ParameterGroup(name="upper-mixers", holds=UPPER_MIXERS, learning_rate=plan.rate * first.ttt_learning_rate),
        ParameterGroup(
            name="others", holds=ALL_OTHERS, learning_rate=plan.rate * first.learning_rate,
            from_step=round(plan.mixers_alone * steps),
        ),
    )  # fmt: skip
    segment = plan.segment_positions // (FRAMES_A_POSITION if isinstance(first, FrameTraining) else 1)
    # The inner step size was warmed up in stage 1, and belongs to trained weights from here on. Segments bound what is
    # held; checkpointed layers would lose the state that they carry.
    return with_fields(
        first, groups=groups, warmup_steps=plan.warmup_steps, inner_warmup_steps=0,
        segment_positions=segment, lora=plan.lora, gradient_checkpointing=False,
    )  # fmt: skip


def _evaluation(first: EvaluationPlan, steps: int, plan: StagePlan) -> EvaluationPlan:
    return dataclasses.replace(
        first,
        validate_every_steps=steps,  # before the first and after the last: one conversation is 64k positions
        checkpoint_every_steps=plan.checkpoint_every_steps,
        monitor_every_steps=plan.monitor_every_steps,
        position_edges=plan.edges,
        distance_edges=plan.edges,
        seconds_edges=(*first.seconds_edges, 2 * first.seconds_edges[-1], 4 * first.seconds_edges[-1]),
    )
