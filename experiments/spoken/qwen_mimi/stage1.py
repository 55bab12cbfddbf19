"""Qwen + Mimi at stage 1: its model, conversations, training and arms at every scale."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from backbones.qwen_mimi import RESERVED_TEXT_IDS, QwenMimiConfig
from experiments.data.framing import UNITS_PER_FRAME
from experiments.data.spec import ConversationSpec
from experiments.harness.study import Scale
from experiments.spoken.configuration import Arm, DataPlan, EvaluationPlan
from experiments.spoken.qwen_mimi.configuration import Codes, QwenMimiExperiment, QwenMimiTraining
from experiments.spoken.stage1 import frames_on_a_cpu, single_stage, smoke_data, stage1_arms, two_stages_on_a_gpu
from ttt_core import TTTConfig


@dataclass(frozen=True, kw_only=True)
class _Sizes:
    """What the scales differ in."""

    model: QwenMimiConfig
    data: DataPlan
    training: QwenMimiTraining
    evaluation: EvaluationPlan
    lower_window: int
    mini_batch_size: int
    key_bytes: int  # of one number in the attention's cache
    codes: Codes = "units"


def first_stage(*, recipe: str, scale: Scale, seed: int) -> QwenMimiExperiment:
    """Stage 1: several arms that differ in the upper layers alone. Later stages go on with its model and arms."""
    sizes = {"smoke": _smoke, "cpu": _cpu, "gpu": _gpu, "full": _full}[scale]()
    return QwenMimiExperiment(
        recipe=recipe,
        scale=scale,
        seed=seed,
        codes=sizes.codes,
        model=sizes.model,
        data=sizes.data,
        training=sizes.training,
        evaluation=sizes.evaluation,
        arms=_arms(sizes),
    )


def _arms(sizes: _Sizes) -> tuple[Arm, ...]:
    model = sizes.model
    mlp = TTTConfig(
        hidden_size=model.hidden_size,
        num_heads=model.num_attention_heads,
        inner_model="mlp",
        mini_batch_size=sizes.mini_batch_size,
        projection_bias=True,  # as the attention that it starts from
    )
    one_position = 2 * model.num_key_value_heads * (model.hidden_size // model.num_attention_heads) * sizes.key_bytes
    return stage1_arms(mlp, tuple(model.ttt_layers), one_position, sizes.lower_window)


def _of_units(model: QwenMimiConfig, spec: ConversationSpec) -> QwenMimiConfig:
    """The model with the data's vocabularies, and codebooks for the units of a frame, said and heard."""
    return dataclasses.replace(
        model, codebooks=UNITS_PER_FRAME, codebook_size=spec.unit_vocab_size,
        text_vocab_size=spec.text_vocab_size + RESERVED_TEXT_IDS,
    )  # fmt: skip


def _smoke() -> _Sizes:
    """Seconds: every part of the recipe runs once. Its numbers mean nothing."""
    data = smoke_data()
    return _Sizes(
        model=_of_units(QwenMimiConfig.at_scale("smoke"), data.spec),
        data=data,
        training=QwenMimiTraining(
            learning_rate=3e-3, ttt_learning_rate=3e-3, warmup_steps=1, audio_frames_per_step=50
        ),
        evaluation=EvaluationPlan(
            validate_every_steps=4, checkpoint_every_steps=2, monitor_every_steps=2, speech_turns=1,
            sample_new_positions=30, position_edges=(0, 512, 1024, 2048), distance_edges=(0, 512, 1024, 2048),
        ),
        lower_window=64,
        mini_batch_size=16,
        key_bytes=4,
    )  # fmt: skip


def _cpu() -> _Sizes:
    """Minutes on two cores: a toy's width, moshi-stage1's conversations and curriculum (where each choice is measured).

    The window of the lower layers, 250 frames, is 20 s: conversations of three minutes are eight times as long.
    """
    data = frames_on_a_cpu()
    edges = (0, 128, 256, 512, 1024, 2048)
    return _Sizes(
        model=_of_units(QwenMimiConfig.at_scale("cpu"), data.spec),
        data=data,
        training=QwenMimiTraining(
            learning_rate=3e-3, ttt_learning_rate=3e-3, warmup_steps=20, fact_value_weight=5.0,
            audio_frames_per_step=128,
        ),
        evaluation=EvaluationPlan(
            validate_every_steps=295, checkpoint_every_steps=118, monitor_every_steps=10, speech_turns=20,
            sample_new_positions=40, position_edges=edges, distance_edges=edges,
        ),
        lower_window=250,
        mini_batch_size=16,
        key_bytes=4,
    )  # fmt: skip


def _gpu() -> _Sizes:
    """One GPU, trained from scratch: BF16 with FP32 states, conversations of twenty minutes."""
    data = two_stages_on_a_gpu(long_ones_per_step=4)
    edges = (0, 512, 2048, 4096, 8192, 16384)
    return _Sizes(
        model=_of_units(QwenMimiConfig.at_scale("gpu"), data.spec),
        data=data,
        training=QwenMimiTraining(
            learning_rate=6e-4, ttt_learning_rate=6e-4, warmup_steps=400, audio_frames_per_step=2048,
            inner_warmup_steps=400, precision="bf16-mixed",
        ),
        evaluation=EvaluationPlan(
            validate_every_steps=500, checkpoint_every_steps=250, speech_turns=20, sample_new_positions=75,
            position_edges=edges, distance_edges=edges,
        ),
        lower_window=1500,
        mini_batch_size=64,
        key_bytes=2,
    )  # fmt: skip


def _full() -> _Sizes:
    """Qwen2.5-7B's published dimensions over Mimi's codes, TTT in layers 12 to 27.

    No weights of such a model exist: --weights for a trained Mimi alone, or for a model that was saved with one.
    """
    spec = ConversationSpec(
        positions=8192, conversations=4096, validation_conversations=24, unit_vocab_size=1000,
        unit_fit_utterances=2000, text_vocab_size=1024,
    )  # fmt: skip
    edges = (0, 512, 2048, 4096, 8192, 16384)
    return _Sizes(
        model=QwenMimiConfig.planned(),
        data=single_stage(spec),
        training=QwenMimiTraining(
            trains="upper_mixers_and_speech", learning_rate=5e-5, ttt_learning_rate=2e-4, warmup_steps=200,
            audio_frames_per_step=1024, inner_warmup_steps=200, precision="bf16-mixed", gradient_checkpointing=True,
        ),
        evaluation=EvaluationPlan(
            validate_every_steps=250, checkpoint_every_steps=250, speech_turns=20, sample_new_positions=75,
            position_edges=edges, distance_edges=edges,
        ),
        lower_window=3000,
        mini_batch_size=64,
        key_bytes=2,
        codes="mimi",
    )  # fmt: skip
