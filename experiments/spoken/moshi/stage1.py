"""Moshi at stage 1: its model, conversations, training and arms at every scale."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from backbones.moshi import MoshiConfig
from experiments.data.framing import UNITS_PER_FRAME
from experiments.data.spec import ConversationSpec
from experiments.harness.study import Scale
from experiments.spoken.configuration import Arm, DataPlan, EvaluationPlan
from experiments.spoken.moshi.configuration import MoshiExperiment, MoshiTraining
from experiments.spoken.stage1 import (
    frames_on_a_cpu,
    single_stage,
    smoke_data,
    stage1_arms,
    two_stages_on_a_gpu,
    upper_quarter,
)
from ttt_core import TTTConfig


@dataclass(frozen=True, kw_only=True)
class _Sizes:
    """What the scales differ in. The model's context is the ring, and the window of the lower layers."""

    model: MoshiConfig
    data: DataPlan
    training: MoshiTraining
    evaluation: EvaluationPlan
    mini_batch_size: int
    key_bytes: int  # of one number in the attention's cache


def first_stage(*, recipe: str, scale: Scale, seed: int) -> MoshiExperiment:
    """Stage 1: several arms that differ in the upper layers alone. Later stages go on with its model and arms."""
    sizes = {"smoke": _smoke, "cpu": _cpu, "gpu": _gpu, "full": _full}[scale]()
    return MoshiExperiment(
        recipe=recipe,
        scale=scale,
        seed=seed,
        model=sizes.model,
        data=sizes.data,
        training=sizes.training,
        evaluation=sizes.evaluation,
        arms=_arms(sizes),
    )


def _arms(sizes: _Sizes) -> tuple[Arm, ...]:
    model = sizes.model
    mlp = TTTConfig(
        hidden_size=model.dim,
        num_heads=model.num_heads,
        inner_model="mlp",
        mini_batch_size=sizes.mini_batch_size,
    )
    ring = model.context
    *windowed, full = stage1_arms(
        mlp, upper_quarter(model.num_layers), 2 * model.dim // model.kv_repeat * sizes.key_bytes, ring
    )
    return (*windowed, Arm(name="ring", upper_layers=full.upper_layers, upper_window=ring, lower_window=ring), full)


def _of_units(model: MoshiConfig, spec: ConversationSpec) -> MoshiConfig:
    """The model with the data's vocabularies, and codebooks for the units of a frame, said and heard.

    No codebook is delayed: the units of a frame follow each other in time, and the depth transformer says them in that
    order. Moshi delays the finer levels of a residual code, of which there are none here.
    """
    return dataclasses.replace(
        model, n_q=2 * UNITS_PER_FRAME, dep_q=UNITS_PER_FRAME, delays=(0,) * (1 + 2 * UNITS_PER_FRAME),
        depformer_context=UNITS_PER_FRAME, card=spec.unit_vocab_size, text_card=spec.text_vocab_size,
    )  # fmt: skip


def _smoke() -> _Sizes:
    """Seconds: every part of the recipe runs once. Its numbers mean nothing."""
    data = smoke_data()
    return _Sizes(
        model=_of_units(dataclasses.replace(MoshiConfig.at_scale("smoke"), context=64), data.spec),
        data=data,
        training=MoshiTraining(
            learning_rate=3e-3, ttt_learning_rate=3e-3, warmup_steps=1, audio_frames_per_step=50
        ),
        evaluation=EvaluationPlan(
            validate_every_steps=4, checkpoint_every_steps=2, monitor_every_steps=2, speech_turns=1,
            sample_new_positions=30, position_edges=(0, 512, 1024, 2048), distance_edges=(0, 512, 1024, 2048),
        ),
        mini_batch_size=16,
        key_bytes=4,
    )  # fmt: skip


def _cpu() -> _Sizes:
    """Minutes on two cores: a toy's width, and conversations of three minutes, eight times the ring.

    As llama-omni-stage1 (where each choice is measured): short, dense conversations about two things first. They are
    drawn by the length that Llama-Omni would read; in frames they are about twice as long, 300, 1,100 and 2,200. With
    full attention, what was asked for in the short ones was recalled in 16 % of the cases after 200 steps of 8, and in
    55 % after 400; a weight of 15 on asked values was ahead at first and level in the end (56 %). The long ones are
    read in a few steps: of 4,280 frames, a step with windows takes 7 s on one core.
    """
    data = frames_on_a_cpu()
    edges = (0, 128, 256, 512, 1024, 2048)
    return _Sizes(
        # Its ring holds 250 frames: 20 s where the published one holds 240 s.
        model=_of_units(MoshiConfig.at_scale("cpu"), data.spec),
        data=data,
        training=MoshiTraining(
            learning_rate=3e-3, ttt_learning_rate=3e-3, warmup_steps=20, fact_value_weight=5.0,
            audio_frames_per_step=128,
        ),
        evaluation=EvaluationPlan(
            validate_every_steps=295, checkpoint_every_steps=118, monitor_every_steps=10, speech_turns=20,
            sample_new_positions=40, position_edges=edges, distance_edges=edges,
        ),
        mini_batch_size=16,
        key_bytes=4,
    )  # fmt: skip


def _gpu() -> _Sizes:
    """One GPU, trained from scratch: BF16 with FP32 states, conversations of twenty minutes."""
    data = two_stages_on_a_gpu(long_ones_per_step=4)
    edges = (0, 512, 2048, 4096, 8192, 16384)
    return _Sizes(
        model=_of_units(MoshiConfig.at_scale("gpu"), data.spec),
        data=data,
        training=MoshiTraining(
            learning_rate=6e-4, ttt_learning_rate=6e-4, warmup_steps=400, audio_frames_per_step=2048,
            inner_warmup_steps=400, precision="bf16-mixed",
        ),
        evaluation=EvaluationPlan(
            validate_every_steps=500, checkpoint_every_steps=250, speech_turns=20, sample_new_positions=75,
            position_edges=edges, distance_edges=edges,
        ),
        mini_batch_size=64,
        key_bytes=2,
    )  # fmt: skip


def _full() -> _Sizes:
    """The published dimensions, TTT in layers 24 to 31; --weights for its weights (trained on Mimi codes)."""
    spec = ConversationSpec(
        positions=8192, conversations=4096, validation_conversations=24, unit_vocab_size=1000,
        unit_fit_utterances=2000, text_vocab_size=1024,
    )  # fmt: skip
    edges = (0, 512, 2048, 4096, 8192, 16384)
    return _Sizes(
        model=dataclasses.replace(MoshiConfig.published(), gradient_checkpointing=True),
        data=single_stage(spec),
        training=MoshiTraining(
            trains="upper_mixers_and_speech", learning_rate=5e-5, ttt_learning_rate=2e-4, warmup_steps=200,
            audio_frames_per_step=1024, inner_warmup_steps=200, precision="bf16-mixed",
        ),
        evaluation=EvaluationPlan(
            validate_every_steps=250, checkpoint_every_steps=250, speech_turns=20, sample_new_positions=75,
            position_edges=edges, distance_edges=edges,
        ),
        mini_batch_size=64,
        key_bytes=2,
    )  # fmt: skip
