"""Runs made unstable by their step sizes: what does the monitor show first, is |W1| above 10 a sign, does 0.1 cure it?

One small model on one set of batches. The inner step size (`base_lr`) climbs a ladder for both inner models, from 0.1
over the defaults (1 linear, 0.1 mlp) to 512, and to where FP32 overflows; one arm keeps the weights' norm, so that
large steps stay large; and the outer learning rates are multiplied by 100, with and without `base_lr` 0.1 as a cure.
"""

from __future__ import annotations

import dataclasses

from experiments.fact_streams.configuration import ModelSizes, StreamStage, StreamTraining
from experiments.fact_streams.spec import FactStreamSpec
from experiments.harness.study import Scale
from experiments.instability.configuration import Arm, InstabilityExperiment
from ttt_core import TTTConfig

CURE = 0.1
OVERFLOWS = 1e38
"""An inner step with which FP32 overflows in the first mini-batches: a run that has to diverge."""


def instability(*, scale: Scale, seed: int) -> InstabilityExperiment:
    model, training, size, seeds = {"smoke": _smoke, "cpu": _cpu, "gpu": _gpu, "full": _full}[scale]()
    return InstabilityExperiment(
        recipe="instability",
        scale=scale,
        seed=seed,
        seed_count=seeds,
        model=model,
        stream=FactStreamSpec(keys=4, values=4) if scale == "smoke" else FactStreamSpec(),
        training=training,
        arms=_smoke_arms(model, size) if scale == "smoke" else _arms(model, size),
        reference="linear-8",
        monitor_every_steps=1 if scale == "smoke" else 5,
        smoothed_steps=2 if scale == "smoke" else 20,
        lost_nats=0.3,
    )


def _ttt(model: ModelSizes, mini_batch_size: int) -> TTTConfig:
    heads = max(1, model.dim // 64)
    return TTTConfig(
        hidden_size=model.dim, num_heads=heads, inner_model="linear", mini_batch_size=mini_batch_size, base_lr=8.0
    )


def _arms(model: ModelSizes, mini_batch_size: int) -> tuple[Arm, ...]:
    linear = _ttt(model, mini_batch_size)
    mlp = dataclasses.replace(linear, inner_model="mlp")
    ladder = [(linear, rate) for rate in (CURE, 1.0, 8.0, 512.0)] + [(mlp, rate) for rate in (CURE, 512.0)]
    return (
        *(
            Arm(
                name=f"{ttt.inner_model}-{rate:g}", ttt=dataclasses.replace(ttt, base_lr=rate),
                cures="linear-overflows" if ttt is linear and rate == CURE else None,
            )
            for ttt, rate in ladder
        ),
        Arm(name="linear-overflows", ttt=dataclasses.replace(linear, base_lr=OVERFLOWS)),
        Arm(
            name="linear-512-renormalised",
            ttt=dataclasses.replace(linear, base_lr=512.0, renormalises_inner_weights=True),
        ),
        Arm(name="linear-8-outer-x100", ttt=linear, outer_rate_factor=100.0),
        Arm(
            name="linear-0.1-outer-x100", ttt=dataclasses.replace(linear, base_lr=CURE), outer_rate_factor=100.0,
            cures="linear-8-outer-x100",
        ),
    )  # fmt: skip


def _smoke_arms(model: ModelSizes, mini_batch_size: int) -> tuple[Arm, ...]:
    """One of each kind: the reference, its cure, the other inner model, and one that diverges."""
    wanted = ("linear-0.1", "linear-8", "mlp-0.1", "linear-overflows", "linear-8-outer-x100", "linear-0.1-outer-x100")
    return tuple(arm for arm in _arms(model, mini_batch_size) if arm.name in wanted)


Sizes = tuple[ModelSizes, StreamTraining, int, int]
"""Model, training, mini-batch size, seeds."""


def _smoke() -> Sizes:
    """Seconds. Its numbers mean nothing."""
    training = StreamTraining(
        learning_rate=3e-3, ttt_learning_rate=3e-3, warmup_steps=1, validate_every_steps=12, validation_streams=4,
        stages=(StreamStage(positions=16, streams_per_step=4, steps=12),),
    )  # fmt: skip
    return ModelSizes(dim=16, num_heads=2, num_layers=2, context=4, pinned=4), training, 4, 1


def _cpu() -> Sizes:
    """Minutes on two cores: `endless-stream`'s model and batches, and as many steps as recall needs to form: after 300
    steps on 32 streams it stood at 0.08, too little for any arm to lose some. Whether most of the lost runs are cured
    takes six seeds: of fewer, even if all are, the exact interval of the share reaches below one half."""
    training = StreamTraining(
        learning_rate=3e-3, ttt_learning_rate=3e-3, weight_decay=0.01, warmup_steps=50, validate_every_steps=100,
        stages=(StreamStage(positions=32, streams_per_step=48, steps=400),),
    )  # fmt: skip
    return ModelSizes(dim=64, num_heads=4, num_layers=2, context=4, pinned=4), training, 4, 6


def _gpu() -> Sizes:
    """One GPU: eight layers, 8 heads, streams of 512."""
    _, training, _, seeds = _cpu()
    training = dataclasses.replace(
        training, learning_rate=1e-3, ttt_learning_rate=1e-3, warmup_steps=100, validate_every_steps=250,
        stages=(StreamStage(positions=512, streams_per_step=32, steps=2000),),
    )  # fmt: skip
    return ModelSizes(dim=512, num_heads=8, num_layers=8, context=16, pinned=4), training, 16, seeds


def _full() -> Sizes:
    """Sixteen layers, streams of 2,048."""
    _, training, _, seeds = _gpu()
    training = dataclasses.replace(training, stages=(StreamStage(positions=2048, streams_per_step=8, steps=4000),))
    return ModelSizes(dim=1024, num_heads=16, num_layers=16, context=64, pinned=4), training, 64, seeds
