"""What the stage-1 recipes of all backbones share: their arms, and the conversations they read."""

from __future__ import annotations

import dataclasses

from experiments.data.spec import ConversationSpec
from experiments.spoken.arms import window_of_equal_memory
from experiments.spoken.configuration import Arm, DataPlan, TrainingStage
from ttt_core import TTTConfig

SINKS = 4


def upper_quarter(layers: int) -> tuple[int, ...]:
    """24 to 31 of 32."""
    return tuple(range(layers * 3 // 4, layers))


def stage1_arms(mlp: TTTConfig, upper: tuple[int, ...], key_value_bytes: int, lower_window: int) -> tuple[Arm, ...]:
    """Four arms that differ in what mixes positions in the upper layers.

    mlp: the TTT layer of ttt-mlp; ttt-linear has all but the inner model of it, and the sliding window takes as many
    bytes as its state. key_value_bytes: what one layer's attention keeps of one position. lower_window: positions that
    the layers below see, except in full-attention.
    """
    linear = dataclasses.replace(mlp, inner_model="linear")
    same_memory = window_of_equal_memory(mlp, key_value_bytes, SINKS)
    return (
        Arm(name="ttt-mlp", upper_layers=upper, ttt=mlp, lower_window=lower_window, sinks=SINKS),
        Arm(name="ttt-linear", upper_layers=upper, ttt=linear, lower_window=lower_window, sinks=SINKS),
        Arm(
            name="sliding-window", upper_layers=upper, upper_window=same_memory, lower_window=lower_window, sinks=SINKS
        ),
        Arm(name="full-attention", upper_layers=upper),
    )


def smoke_data() -> DataPlan:
    """Two stages of two conversations: seconds."""
    return DataPlan(
        spec=ConversationSpec(
            positions=512, conversations=2, validation_conversations=1, subjects=2, subject_words=1, values=4,
            fact_stated_by="assistant", small_talk=12, unit_vocab_size=48, unit_fit_utterances=40, text_vocab_size=512,
        ),
        curriculum=(
            TrainingStage(positions=256, conversations=2, conversations_per_step=2, steps=2),
            TrainingStage(positions=512, conversations=2, conversations_per_step=1, steps=2),
        ),
    )  # fmt: skip


def brief_conversations(positions: int, conversations: int, validation_conversations: int) -> ConversationSpec:
    """Brief, dense conversations, from which a toy learns to recall at all within minutes."""
    return ConversationSpec(
        positions=positions, conversations=conversations, validation_conversations=validation_conversations, subjects=6,
        subject_words=1, values=12, fact_phrasing="brief", fact_stated_by="assistant", event_share=1.0, small_talk=60,
        unit_vocab_size=100, unit_fit_utterances=200, text_vocab_size=512,
    )  # fmt: skip


def long_conversations_on_a_cpu() -> DataPlan:
    """Conversations of 8,192 positions, reached in four stages.

    Recall has to be learned at all before distance can matter. In short conversations about two things, with brief
    sentences, everything asked as often as possible and asked values weighing five times, full attention recalled every
    second value after 300 steps; in 512 positions of whole sentences it guessed after 1,200 (both Llama-Omni). So the
    length grows. The short ones keep a little small talk: without any, the long ones began at 12 nats a token.
    """
    return DataPlan(
        spec=brief_conversations(8192, conversations=40, validation_conversations=6),
        curriculum=(
            TrainingStage(
                positions=128, conversations=4096, conversations_per_step=16, steps=450, early_share=0.9,
                subjects_per_conversation=2,
            ),
            TrainingStage(
                positions=512, conversations=512, conversations_per_step=4, steps=120, early_share=0.75,
                subjects_per_conversation=4,
            ),
            TrainingStage(positions=2048, conversations=128, conversations_per_step=1, steps=80, early_share=0.5),
            TrainingStage(positions=8192, conversations=40, conversations_per_step=1, steps=40),
        ),
    )  # fmt: skip


def frames_on_a_cpu() -> DataPlan:
    """Conversations of three minutes for backbones that read frames, reached in three stages (see moshi-stage1)."""
    return DataPlan(
        spec=brief_conversations(1024, conversations=128, validation_conversations=8),
        curriculum=(
            TrainingStage(
                positions=128, conversations=4096, conversations_per_step=8, steps=500, early_share=0.9,
                subjects_per_conversation=2,
            ),
            TrainingStage(
                positions=512, conversations=512, conversations_per_step=2, steps=60, early_share=0.75,
                subjects_per_conversation=4,
            ),
            TrainingStage(positions=1024, conversations=128, conversations_per_step=1, steps=30),
        ),
    )  # fmt: skip


def two_stages_on_a_gpu(long_ones_per_step: int) -> DataPlan:
    """Conversations about many things, in whole sentences: short ones, then `long_ones_per_step` of 8,192 positions."""
    return DataPlan(
        spec=ConversationSpec(
            positions=8192, conversations=4096, validation_conversations=24, values=40, unit_vocab_size=500,
            unit_fit_utterances=600, text_vocab_size=1024,
        ),
        curriculum=(
            TrainingStage(positions=1024, conversations=16384, conversations_per_step=32, steps=4000),
            TrainingStage(positions=8192, conversations=4096, conversations_per_step=long_ones_per_step, steps=4000),
        ),
    )  # fmt: skip


def single_stage(spec: ConversationSpec) -> DataPlan:
    """4,000 steps of one conversation each, for a published model."""
    stage = TrainingStage(
        positions=spec.positions, conversations=spec.conversations, conversations_per_step=1, steps=4000
    )
    return DataPlan(spec=spec, curriculum=(stage,))
