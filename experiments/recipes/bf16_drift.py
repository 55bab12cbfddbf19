"""A TTT state kept in BF16: how fast does rounding add up, by updates and by tokens, and does it ever break speech?

State: streams of vectors (independent; correlated; log-mel of synthetic speech) through random layers of both inner
models, at mini-batch 1, 16 and 64, under every precision policy of ttt_core, against FP64. Mini-batch 16 is crossed
with step sizes and seeds; mini-batch 64 keeps the default step size; mini-batch 1, by far the dearest (as many updates
as tokens), keeps one seed as well.

Model: a small full-duplex model with TTT in its top layer, trained in FP32 on fact streams as kv-wraparound's
`ttt-past` is, then streamed a thousand times further with the same weights under every policy, and under an autocast
that the inner loop is guarded against, or not. The grammar's entropy is constant, so a drift of the loss is a drift of
the model, and its difference to FP32 on the same streams is what the policy did.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from experiments.drift.configuration import (
    CLAIMED_UPDATES,
    DriftExperiment,
    ModelPart,
    StateArm,
    StatePlan,
    autocast_treatments,
    decay_treatments,
    policy_treatments,
)
from experiments.fact_streams.configuration import ModelSizes, StreamStage, StreamTraining
from experiments.fact_streams.spec import FactStreamSpec
from experiments.harness.study import Scale
from ttt_core import TTTConfig
from ttt_core.config import InnerModelName

INNER_MODELS: tuple[InnerModelName, ...] = ("linear", "mlp")


@dataclass(frozen=True, kw_only=True)
class _Sizes:
    """What the scales differ in."""

    seed_count: int
    state: StatePlan
    state_arms: tuple[StateArm, ...]
    model_part: ModelPart


def bf16_drift(*, scale: Scale, seed: int) -> DriftExperiment:
    sizes = {"smoke": _smoke, "cpu": _cpu, "gpu": _gpu, "full": _full}[scale]()
    return DriftExperiment(
        recipe="bf16-drift",
        scale=scale,
        seed=seed,
        seed_count=sizes.seed_count,
        state=sizes.state,
        state_arms=sizes.state_arms,
        model_part=sizes.model_part,
    )


def _position_edges(mini_batch_size: int, positions: int) -> tuple[int, ...]:
    """Two buckets an octave, with an edge at the claimed number of updates (and, at mini-batch 4, of tokens)."""
    claimed = CLAIMED_UPDATES * mini_batch_size
    edges = {round(claimed * 2 ** (half / 2)) for half in range(-14, 20)}
    return (0, *sorted(edge for edge in edges if edge <= positions))


def _smoke() -> _Sizes:
    """Seconds: every kind of arm and of treatment. Its numbers mean nothing."""
    treatments = (*policy_treatments("fp32"), *autocast_treatments("fp32"), *decay_treatments())
    kept = ("fp32", "bf16", "autocast_guarded", "autocast_unguarded", "fp32_decay", "bf16_decay")
    return _Sizes(
        seed_count=2,
        state=StatePlan(
            hidden_size=8, num_heads=2, tokens=96, probe_tokens=8, speech_utterances=2, tokens_per_call=32,
            exponent_from=2,
        ),
        state_arms=(
            *(
                StateArm(
                    inner_model=inner, mini_batch_size=4, step_factors=(1.0, 8.0), streams=1, has_autocast=True,
                    has_all_seeds=inner == "linear",
                )
                for inner in INNER_MODELS
            ),
            StateArm(
                inner_model="linear", mini_batch_size=1, step_factors=(1.0,), streams=2, has_all_seeds=False
            ),
        ),
        model_part=ModelPart(
            model=ModelSizes(dim=16, num_heads=2, num_layers=2, context=8),
            ttt=TTTConfig(hidden_size=16, num_heads=1, inner_model="linear", mini_batch_size=4, base_lr=8.0),
            stream=FactStreamSpec(keys=4, values=4),
            training=StreamTraining(
                learning_rate=3e-3, ttt_learning_rate=3e-3, warmup_steps=1, validate_every_steps=4,
                validation_streams=4, stages=(StreamStage(positions=32, streams_per_step=2, steps=4),),
            ),
            positions=128, streams=2, tokens_per_call=24, position_edges=(0, 16, 32, 64, 128),
            distance_edges=(0, 4, 8, 32), near=4, treatments=tuple(each for each in treatments if each.name in kept),
        ),
    )  # fmt: skip


def _cpu() -> _Sizes:
    """Minutes on two cores."""
    crossed = tuple(
        StateArm(inner_model=inner, mini_batch_size=16, step_factors=(0.125, 1.0, 8.0), streams=2, has_autocast=True)
        for inner in INNER_MODELS
    )
    varied = tuple(
        StateArm(inner_model=inner, mini_batch_size=size, step_factors=(1.0,), streams=streams, has_all_seeds=seeds)
        for size, streams, seeds in ((1, 3, False), (64, 2, True))
        for inner in INNER_MODELS
    )
    context, mini_batch_size, positions = 16, 4, 120_000
    return _Sizes(
        seed_count=3,
        state=StatePlan(
            hidden_size=32, num_heads=2, tokens=61_440, probe_tokens=128, speech_utterances=150, tokens_per_call=4096
        ),
        state_arms=(*crossed, *varied),
        model_part=ModelPart(
            model=ModelSizes(dim=64, num_heads=4, num_layers=2, context=context),
            # One head of 64 and large steps: with four heads of 16, or a step size of 1, memory did not form.
            ttt=TTTConfig(
                hidden_size=64, num_heads=1, inner_model="linear", mini_batch_size=mini_batch_size, base_lr=8.0
            ),
            stream=FactStreamSpec(),
            training=StreamTraining(
                learning_rate=3e-3, ttt_learning_rate=3e-3, weight_decay=0.01, warmup_steps=50,
                validate_every_steps=130,
                stages=(
                    StreamStage(positions=64, streams_per_step=32, steps=500, narrowed_window=8),
                    StreamStage(positions=128, streams_per_step=16, steps=150),
                ),
            ),
            positions=positions, streams=4, tokens_per_call=240,
            position_edges=_position_edges(mini_batch_size, positions),
            distance_edges=(0, 8, 16, 32, 64, 128, 256, 512), near=context // 2,
        ),
    )  # fmt: skip


def _gpu() -> _Sizes:
    """One GPU: a million tokens, wider heads, and a model of eight layers with TTT-mlp; no arm of a million updates."""
    cpu = _cpu()
    context, mini_batch_size, positions = 256, 16, 480_000
    return _Sizes(
        seed_count=3,
        state=dataclasses.replace(
            cpu.state, hidden_size=512, num_heads=8, tokens=1_048_576, speech_utterances=400, tokens_per_call=8192
        ),
        state_arms=tuple(arm for arm in cpu.state_arms if arm.mini_batch_size > 1),
        model_part=dataclasses.replace(
            cpu.model_part,
            model=ModelSizes(dim=512, num_heads=8, num_layers=8, context=context),
            ttt=TTTConfig(
                hidden_size=512, num_heads=8, inner_model="mlp", mini_batch_size=mini_batch_size, base_lr=1.0
            ),
            stream=FactStreamSpec(keys=64, values=64),
            training=dataclasses.replace(
                cpu.model_part.training, learning_rate=1e-3, ttt_learning_rate=1e-3, warmup_steps=200,
                validate_every_steps=500, stages=(StreamStage(positions=8 * context, streams_per_step=16, steps=4000),),
            ),
            positions=positions, streams=16, tokens_per_call=1920,
            position_edges=_position_edges(mini_batch_size, positions),
            distance_edges=(0, 64, 128, 256, 512, 1024, 2048, 4096), near=context // 2,
        ),
    )  # fmt: skip


def _full() -> _Sizes:
    """Published width of a head (128), 32 heads, a million tokens at the published mini-batch sizes."""
    gpu = _gpu()
    return dataclasses.replace(
        gpu,
        state=dataclasses.replace(gpu.state, hidden_size=4096, num_heads=32),
        state_arms=tuple(dataclasses.replace(arm, step_factors=(1.0,), streams=1) for arm in gpu.state_arms),
    )
