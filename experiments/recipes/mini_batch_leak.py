"""Mini-batches that read ahead, as published for video: does what they train decode?

A small language model on readable text, with TTT in the place of its top attention, is trained on the same batches
twice: with causal mini-batches, and with the operators' own, where every row reads its whole mini-batch. Then held-out
text is read all at once in the form of training, and one token a call, as any port has to decode, and conversations are
continued.
"""

from __future__ import annotations

from experiments.data.spec import ConversationSpec
from experiments.harness.study import Scale
from experiments.mini_batch_leak.configuration import (
    Layer,
    MiniBatchLeakExperiment,
    TextModel,
    TextTraining,
    WritingPlan,
)
from ttt_core import TTTConfig


def mini_batch_leak(*, scale: Scale, seed: int) -> MiniBatchLeakExperiment:
    return {"smoke": _smoke, "cpu": _cpu, "gpu": _gpu, "full": _full}[scale](seed)


def _smoke(seed: int) -> MiniBatchLeakExperiment:
    """Seconds: both inner models, both forms. Its numbers mean nothing."""
    return MiniBatchLeakExperiment(
        recipe="mini-batch-leak",
        scale="smoke",
        seed=seed,
        seed_count=1,
        text=_text(positions=128, conversations=8, held_out=2, vocabulary=512),
        model=TextModel(hidden_size=16, intermediate_size=16, num_heads=1, num_layers=2, window=8),
        training=TextTraining(
            learning_rate=5e-3, ttt_learning_rate=5e-3, warmup_steps=1, steps=4, rows_per_step=2, validate_every_steps=4
        ),
        layers=_layers(16, 1, linear=(16,), mlp=(16,)),
        writing=WritingPlan(rows=2, prompt_tokens=16, written_tokens=24, temperature=0.7),
    )


def _cpu(seed: int) -> MiniBatchLeakExperiment:
    """Minutes on two cores: 300 steps are enough to write in whole sentences when trained causal."""
    return MiniBatchLeakExperiment(
        recipe="mini-batch-leak",
        scale="cpu",
        seed=seed,
        seed_count=3,
        text=_text(positions=256, conversations=1024, held_out=32, vocabulary=512),
        model=TextModel(hidden_size=64, intermediate_size=128, num_heads=1, num_layers=2, window=16),
        training=TextTraining(
            learning_rate=5e-3, ttt_learning_rate=5e-3, weight_decay=0.01, warmup_steps=30, steps=300, rows_per_step=6,
            validate_every_steps=100,
        ),
        layers=_layers(64, 1, linear=(16, 64), mlp=(16, 64)),
        writing=WritingPlan(rows=16, prompt_tokens=64, written_tokens=128, temperature=0.7),
    )  # fmt: skip


def _gpu(seed: int) -> MiniBatchLeakExperiment:
    """One GPU: eight layers, conversations of 1,024 tokens."""
    return MiniBatchLeakExperiment(
        recipe="mini-batch-leak",
        scale="gpu",
        seed=seed,
        seed_count=3,
        text=_text(positions=1024, conversations=8192, held_out=64, vocabulary=1024),
        model=TextModel(hidden_size=512, intermediate_size=1408, num_heads=8, num_layers=8, window=64),
        training=TextTraining(
            learning_rate=1e-3, ttt_learning_rate=1e-3, warmup_steps=200, steps=3000, rows_per_step=32,
            validate_every_steps=500,
        ),
        layers=_layers(512, 8, linear=(16, 64), mlp=(16, 64)),
        writing=WritingPlan(rows=64, prompt_tokens=128, written_tokens=256, temperature=0.7),
    )  # fmt: skip


def _full(seed: int) -> MiniBatchLeakExperiment:
    """Head dimension 128, sixteen layers, conversations of 4,096 tokens."""
    return MiniBatchLeakExperiment(
        recipe="mini-batch-leak",
        scale="full",
        seed=seed,
        seed_count=3,
        text=_text(positions=4096, conversations=16384, held_out=32, vocabulary=2048),
        model=TextModel(hidden_size=2048, intermediate_size=5632, num_heads=16, num_layers=16, window=256),
        training=TextTraining(
            learning_rate=3e-4, ttt_learning_rate=3e-4, warmup_steps=500, steps=8000, rows_per_step=16,
            validate_every_steps=1000,
        ),
        layers=_layers(2048, 16, linear=(16, 64), mlp=(16, 64)),
        writing=WritingPlan(rows=32, prompt_tokens=256, written_tokens=512, temperature=0.7),
    )  # fmt: skip


def _text(*, positions: int, conversations: int, held_out: int, vocabulary: int) -> ConversationSpec:
    """Few subjects a conversation, so that there is small talk between facts."""
    return ConversationSpec(
        positions=positions,
        conversations=conversations,
        validation_conversations=held_out,
        event_share=0.6,
        subjects_per_conversation=4,
        text_vocab_size=vocabulary,
    )


def _layers(hidden_size: int, heads: int, *, linear: tuple[int, ...], mlp: tuple[int, ...]) -> tuple[Layer, ...]:
    """A layer for every inner model and mini-batch size, with the default inner step size."""
    return tuple(
        Layer(
            name=f"{inner_model}-{size}",
            ttt=TTTConfig(
                hidden_size=hidden_size, num_heads=heads, inner_model=inner_model, mini_batch_size=size
            ),
        )
        for inner_model, sizes in (("linear", linear), ("mlp", mlp))
        for size in sizes
    )  # fmt: skip
