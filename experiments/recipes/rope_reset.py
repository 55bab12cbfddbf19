"""Positions of TTT's rotation that restart with every mini-batch, or count on for ever: which survives long streams?

Two trainings that differ in `rope_positions` alone, on T positions of fact streams, then streamed 32 T positions. Each
is also streamed with its TTT state reset every T positions, which restarts global positions too: what a reset cures in
both is the state's age; what it cures in the global one alone is its positions.
"""

from __future__ import annotations

import dataclasses

from experiments.endless.configuration import EndlessExperiment, StreamPlan, Training, View
from experiments.fact_streams.configuration import ModelSizes, StreamStage, StreamTraining
from experiments.fact_streams.spec import FactStreamSpec
from experiments.harness.study import Scale
from ttt_core import TTTConfig

TRAINED_LENGTHS = 32


def rope_reset(*, scale: Scale, seed: int) -> EndlessExperiment:
    model, training, ttt, streams, seeds = {"smoke": _smoke, "cpu": _cpu, "gpu": _gpu, "full": _full}[scale]()
    trained = training.longest_positions
    positions = TRAINED_LENGTHS * trained
    on_for_ever = dataclasses.replace(ttt, rope_positions="global")
    doubling = tuple(trained * 2**power for power in range(6))
    return EndlessExperiment(
        recipe="rope-reset",
        scale=scale,
        seed=seed,
        seed_count=seeds,
        model=model,
        stream=FactStreamSpec(keys=4, values=4) if scale == "smoke" else FactStreamSpec(),
        training=training,
        segments_per_conversation=2,
        carries_from_step=0,
        words_left_out=0,
        trainings=(Training(name="mini-batch", ttt=ttt), Training(name="global", ttt=on_for_ever)),
        views=(
            View(name="mini-batch", training="mini-batch", ttt=ttt, control="mini-batch-reset-every-T"),
            View(name="global", training="global", ttt=on_for_ever, control="mini-batch"),
            View(name="mini-batch-reset-every-T", training="mini-batch", ttt=ttt, reset_every=trained),
            View(
                name="global-reset-every-T", training="global", ttt=on_for_ever, reset_every=trained,
                control="mini-batch-reset-every-T",
            ),
        ),
        plan=StreamPlan(
            positions=positions,
            streams=streams,
            longest_distance=2 * trained,
            tokens_per_call=4 * trained,
            probes=24,
            position_edges=(0, trained // 2, *doubling),
            distance_edges=(0, model.context, trained // 2, trained, 2 * trained, 4 * trained),
        ),
    )  # fmt: skip


Sizes = tuple[ModelSizes, StreamTraining, TTTConfig, int, int]
"""Model, training, layer, streams a view is measured on, seeds."""


def _smoke() -> Sizes:
    """Seconds. Its numbers mean nothing."""
    training = StreamTraining(
        learning_rate=3e-3, ttt_learning_rate=3e-3, warmup_steps=1, validate_every_steps=4, validation_streams=4,
        stages=(StreamStage(positions=16, streams_per_step=4, steps=4),),
    )  # fmt: skip
    ttt = TTTConfig(hidden_size=16, num_heads=1, inner_model="linear", mini_batch_size=4, base_lr=8.0)
    return ModelSizes(dim=16, num_heads=2, num_layers=2, context=4, pinned=4), training, ttt, 3, 2


def _cpu() -> Sizes:
    """Minutes on two cores: the sizes of `endless-stream`. Three seeds left the price in words open."""
    training = StreamTraining(
        learning_rate=3e-3, ttt_learning_rate=3e-3, weight_decay=0.01, warmup_steps=50, validate_every_steps=150,
        stages=(StreamStage(positions=32, streams_per_step=48, steps=600),),
    )  # fmt: skip
    ttt = TTTConfig(hidden_size=64, num_heads=1, inner_model="linear", mini_batch_size=4, base_lr=8.0)
    return ModelSizes(dim=64, num_heads=4, num_layers=2, context=4, pinned=4), training, ttt, 96, 8


def _gpu() -> Sizes:
    """One GPU: eight layers, T of 512, streams of 16,384 positions."""
    _, training, _, _, seeds = _cpu()
    training = dataclasses.replace(
        training, learning_rate=1e-3, ttt_learning_rate=1e-3, warmup_steps=200, validate_every_steps=500,
        stages=(StreamStage(positions=512, streams_per_step=32, steps=4000),),
    )  # fmt: skip
    ttt = TTTConfig(hidden_size=512, num_heads=8, inner_model="mlp", mini_batch_size=16, base_lr=1.0)
    return ModelSizes(dim=512, num_heads=8, num_layers=8, context=16, pinned=4), training, ttt, 64, seeds


def _full() -> Sizes:
    """Head dimension 128, T of 2,048, streams of 65,536 positions."""
    _, training, _, _, seeds = _gpu()
    training = dataclasses.replace(training, stages=(StreamStage(positions=2048, streams_per_step=8, steps=8000),))
    ttt = TTTConfig(hidden_size=1024, num_heads=8, inner_model="mlp", mini_batch_size=64, base_lr=1.0)
    return ModelSizes(dim=1024, num_heads=16, num_layers=16, context=64, pinned=4), training, ttt, 16, seeds
