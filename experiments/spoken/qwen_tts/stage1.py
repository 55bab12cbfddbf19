"""Qwen + TTS at stage 1: its model, conversations, training and arms at every scale."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from backbones.qwen_tts import QwenConfig
from experiments.data.spec import ConversationSpec
from experiments.data.tokenizer import BOS_ID, EOS_ID
from experiments.harness.study import Scale
from experiments.spoken.configuration import DataPlan, DecoderTraining, EvaluationPlan
from experiments.spoken.qwen_tts.configuration import QwenExperiment
from experiments.spoken.stage1 import (
    long_conversations_on_a_cpu,
    single_stage,
    smoke_data,
    stage1_arms,
    two_stages_on_a_gpu,
    upper_quarter,
)
from ttt_core import TTTConfig


@dataclass(frozen=True, kw_only=True)
class _Sizes:
    """What the scales differ in."""

    model: QwenConfig
    data: DataPlan
    training: DecoderTraining
    evaluation: EvaluationPlan
    lower_window: int
    mini_batch_size: int
    key_bytes: int  # of one number in the attention's cache


def first_stage(*, recipe: str, scale: Scale, seed: int) -> QwenExperiment:
    """Stage 1: several arms that differ in the upper layers alone. Later stages go on with its model and arms."""
    sizes = {"smoke": _smoke, "cpu": _cpu, "gpu": _gpu, "full": _full}[scale]()
    model = sizes.model
    mlp = TTTConfig(
        hidden_size=model.hidden_size,
        num_heads=model.num_attention_heads,
        head_dim=model.resolved_head_dim,
        inner_model="mlp",
        mini_batch_size=sizes.mini_batch_size,
        projection_bias=model.projection_bias,
    )
    key_value_bytes = model.key_values_per_position * sizes.key_bytes
    return QwenExperiment(
        recipe=recipe,
        scale=scale,
        seed=seed,
        model=model,
        data=sizes.data,
        training=sizes.training,
        evaluation=sizes.evaluation,
        arms=stage1_arms(mlp, upper_quarter(model.num_hidden_layers), key_value_bytes, sizes.lower_window),
    )


def _of_text(model: QwenConfig, spec: ConversationSpec) -> QwenConfig:
    """The model with the data's own vocabulary."""
    return dataclasses.replace(
        model, vocab_size=spec.text_vocab_size, bos_token_id=BOS_ID, eos_token_id=EOS_ID
    )  # fmt: skip


def _smoke() -> _Sizes:
    """Seconds: every part of the recipe runs once. Its numbers mean nothing."""
    data = smoke_data()
    return _Sizes(
        model=_of_text(QwenConfig.at_scale("smoke"), data.spec),
        data=data,
        training=DecoderTraining(learning_rate=3e-3, ttt_learning_rate=3e-3, warmup_steps=1),
        evaluation=EvaluationPlan(
            validate_every_steps=4, checkpoint_every_steps=2, monitor_every_steps=2, sample_new_positions=6,
            position_edges=(0, 128, 256, 512), distance_edges=(0, 128, 256, 512),
        ),
        lower_window=64,
        mini_batch_size=16,
        key_bytes=4,
    )  # fmt: skip


def _cpu() -> _Sizes:
    """Minutes on two cores: llama-omni-stage1's conversations, curriculum and width.

    Not yet run. By the CPU time of single steps on a busy machine the four arms train for 390, 230, 220 and 200 seconds
    of one core, so all of it should take about 11 minutes of two idle ones.
    """
    data = long_conversations_on_a_cpu()
    return _Sizes(
        # 0.08 is about 1 / sqrt(128): Qwen's 0.02 is meant for a width of thousands (measured in llama-omni-stage1).
        model=dataclasses.replace(
            _of_text(QwenConfig.at_scale("cpu"), data.spec), initializer_range=0.08, rope_theta=10000.0
        ),
        data=data,
        training=DecoderTraining(
            learning_rate=3e-3, ttt_learning_rate=3e-3, warmup_steps=20, fact_value_weight=5.0
        ),
        evaluation=EvaluationPlan(validate_every_steps=230, checkpoint_every_steps=115, monitor_every_steps=10),
        lower_window=256,
        mini_batch_size=16,
        key_bytes=4,
    )  # fmt: skip


def _gpu() -> _Sizes:
    """One GPU, trained from scratch: 75 million parameters, BF16 with FP32 states."""
    data = two_stages_on_a_gpu(long_ones_per_step=8)
    return _Sizes(
        model=_of_text(QwenConfig.at_scale("gpu"), data.spec),
        data=data,
        training=DecoderTraining(
            learning_rate=6e-4, ttt_learning_rate=6e-4, warmup_steps=400, inner_warmup_steps=400,
            precision="bf16-mixed",
        ),
        evaluation=EvaluationPlan(validate_every_steps=500, checkpoint_every_steps=250),
        lower_window=512,
        mini_batch_size=64,
        key_bytes=2,
    )  # fmt: skip


def _full() -> _Sizes:
    """The published dimensions: Qwen2.5-1.5B, TTT in layers 21 to 27; --weights for its weights."""
    spec = ConversationSpec(
        positions=8192,
        conversations=4096,
        validation_conversations=24,
        text_vocab_size=1024,
    )
    return _Sizes(
        model=QwenConfig.at_scale("full"),
        data=single_stage(spec),
        training=DecoderTraining(
            trains="upper_mixers_and_speech", learning_rate=5e-5, ttt_learning_rate=2e-4, warmup_steps=200,
            inner_warmup_steps=200, precision="bf16-mixed", gradient_checkpointing=True,
        ),
        evaluation=EvaluationPlan(validate_every_steps=250, checkpoint_every_steps=250),
        lower_window=1024,
        mini_batch_size=64,
        key_bytes=2,
    )  # fmt: skip
