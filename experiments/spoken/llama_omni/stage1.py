"""Llama-Omni at stage 1: its model, conversations, training and arms at every scale."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from backbones.llama_omni import LlamaOmniConfig
from experiments.data.spec import ConversationSpec
from experiments.harness.study import Scale
from experiments.spoken.configuration import Arm, DataPlan, EvaluationPlan
from experiments.spoken.llama_omni.configuration import LlamaOmniExperiment, LlamaOmniTraining
from experiments.spoken.stage1 import (
    long_conversations_on_a_cpu,
    single_stage,
    smoke_data,
    stage1_arms,
    two_stages_on_a_gpu,
    upper_quarter,
)
from ttt_core import TTTConfig

ENCODER_CONTEXT_OF_SHORT_UTTERANCES = 500
"""10 s windows: no sentence of the data is longer, and whisper's 30 s would be four fifths silence."""


@dataclass(frozen=True, kw_only=True)
class _Sizes:
    """What the scales differ in."""

    model: LlamaOmniConfig
    data: DataPlan
    training: LlamaOmniTraining
    evaluation: EvaluationPlan
    lower_window: int
    mini_batch_size: int
    key_bytes: int  # of one number in the attention's cache


def first_stage(*, recipe: str, scale: Scale, seed: int) -> LlamaOmniExperiment:
    """Stage 1: several arms that differ in the upper layers alone. Later stages go on with its model and arms."""
    sizes = {"smoke": _smoke, "cpu": _cpu, "gpu": _gpu, "full": _full}[scale]()
    return LlamaOmniExperiment(
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
        hidden_size=model.hidden_size,
        num_heads=model.num_attention_heads,
        inner_model="mlp",
        mini_batch_size=sizes.mini_batch_size,
    )
    key_value_bytes = _key_value_bytes(model, sizes.key_bytes)
    return stage1_arms(mlp, upper_quarter(model.num_hidden_layers), key_value_bytes, sizes.lower_window)


def _key_value_bytes(model: LlamaOmniConfig, key_bytes: int) -> int:
    """Bytes that one layer's attention keeps of one position."""
    key_value_heads = model.num_key_value_heads or model.num_attention_heads
    head_dim = model.head_dim or model.hidden_size // model.num_attention_heads
    return 2 * key_value_heads * head_dim * key_bytes


def _smoke() -> _Sizes:
    """Seconds: every part of the recipe runs once. Its numbers mean nothing."""
    data = smoke_data()
    return _Sizes(
        model=LlamaOmniConfig.tiny(
            vocab_size=data.spec.text_vocab_size,
            unit_vocab_size=data.spec.unit_vocab_size,
            speech_encoder_mel_bins=data.spec.n_mels,
            speech_encoder_context=ENCODER_CONTEXT_OF_SHORT_UTTERANCES,
        ),
        data=data,
        training=LlamaOmniTraining(learning_rate=3e-3, ttt_learning_rate=3e-3, warmup_steps=1, ctc_turns_per_step=1),
        evaluation=EvaluationPlan(
            validate_every_steps=4, checkpoint_every_steps=2, monitor_every_steps=2, speech_turns=1,
            sample_new_positions=6, position_edges=(0, 256, 512), distance_edges=(0, 256, 512),
        ),
        lower_window=64,
        mini_batch_size=16,
        key_bytes=4,
    )  # fmt: skip


def _cpu() -> _Sizes:
    """Minutes on two cores: the published length, a toy's width."""
    data = long_conversations_on_a_cpu()
    return _Sizes(
        model=LlamaOmniConfig.tiny(
            vocab_size=data.spec.text_vocab_size,
            unit_vocab_size=data.spec.unit_vocab_size,
            hidden_size=128,
            intermediate_size=320,
            # About 1 / sqrt(128). Llama's 0.02 is meant for a width of 4096: at width 64, full attention came to 1.17
            # nats a token with it in 400 short steps, and to 0.92 with 0.1.
            initializer_range=0.08,
            rope_theta=10000.0,
            speech_encoder_mel_bins=data.spec.n_mels,
            speech_encoder_context=ENCODER_CONTEXT_OF_SHORT_UTTERANCES,
        ),
        data=data,
        training=LlamaOmniTraining(
            learning_rate=3e-3, ttt_learning_rate=3e-3, warmup_steps=20, fact_value_weight=5.0,
            # A turn a step left the generator saying blanks: after the first 450 steps 0.32 of the units that there
            # are, 0.72 of them wrong; with 16 turns 0.66 and 0.49, and a lower text loss (full attention).
            ctc_turns_per_step=16,
        ),
        evaluation=EvaluationPlan(validate_every_steps=230, checkpoint_every_steps=115, monitor_every_steps=10),
        lower_window=256,
        mini_batch_size=16,
        key_bytes=4,
    )  # fmt: skip


def _gpu() -> _Sizes:
    """One GPU, trained from scratch: 90 million parameters, BF16 with FP32 states."""
    data = two_stages_on_a_gpu(long_ones_per_step=8)
    model = dataclasses.replace(
        LlamaOmniConfig.at_scale("gpu"), vocab_size=data.spec.text_vocab_size, speech_encoder_mel_bins=data.spec.n_mels
    )
    return _Sizes(
        model=model,
        data=data,
        training=LlamaOmniTraining(
            learning_rate=6e-4, ttt_learning_rate=6e-4, warmup_steps=400, ctc_turns_per_step=16,
            inner_warmup_steps=400, precision="bf16-mixed",
        ),
        evaluation=EvaluationPlan(validate_every_steps=500, checkpoint_every_steps=250),
        lower_window=512,
        mini_batch_size=64,
        key_bytes=2,
    )  # fmt: skip


def _full() -> _Sizes:
    """The published dimensions: Llama-3.1-8B-Omni, TTT in layers 24 to 31; --weights for its weights."""
    spec = ConversationSpec(
        positions=8192, conversations=4096, validation_conversations=24, n_mels=128, unit_vocab_size=1000,
        unit_fit_utterances=2000, text_vocab_size=1024,
    )  # fmt: skip
    return _Sizes(
        model=LlamaOmniConfig.at_scale("full"),
        data=single_stage(spec),
        training=LlamaOmniTraining(
            trains="upper_mixers_and_speech", learning_rate=5e-5, ttt_learning_rate=2e-4, warmup_steps=200,
            ctc_turns_per_step=4, inner_warmup_steps=200, precision="bf16-mixed", gradient_checkpointing=True,
        ),
        evaluation=EvaluationPlan(validate_every_steps=250, checkpoint_every_steps=250),
        lower_window=1024,
        mini_batch_size=64,
        key_bytes=2,
    )  # fmt: skip
