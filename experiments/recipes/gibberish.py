"""What breaks an hour of speech, when, and what cures it: the wrap, BF16, an endless state, training that read ahead?

One model, one set of streams, four suspects. The model: Moshi's attention below, which sees the last four positions
and, as long as the ring holds them, the first four; TTT on top, which has to remember everything else. It is trained on
as many positions as the ring holds, once with causal mini-batches and once with mini-batches whose every row sees the
whole. Then it streams an hour, token by token in what it computes: sound (first positions pinned, FP32, a state that
decays, causal training), with each suspect alone, with all of them, and with one cure after the other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from itertools import chain, combinations

from experiments.fact_streams.configuration import ModelSizes, StreamStage, StreamTraining
from experiments.fact_streams.spec import FactStreamSpec
from experiments.gibberish.configuration import (
    CAUSAL,
    EVERYTHING,
    LEAKY,
    SOUND,
    SUSPECTS,
    AgeCure,
    GibberishExperiment,
    Suspect,
    SuspectView,
)
from experiments.harness.study import Scale
from ttt_core import TTTConfig

FRAME_RATE_HZ = 12.5
"""Moshi's positions a second: what turns positions into minutes of speech."""


@dataclass(frozen=True, kw_only=True)
class _Sizes:
    """What the scales differ in. decay: the cure of age. trained_lengths: of the long streams, in T."""

    model: ModelSizes
    stream: FactStreamSpec
    training: StreamTraining
    ttt: TTTConfig
    decay: float
    seed_count: int
    streams: int
    trained_lengths: int


def gibberish(*, scale: Scale, seed: int) -> GibberishExperiment:
    sizes = {"smoke": _smoke, "cpu": _cpu, "gpu": _gpu, "full": _full}[scale]()
    trained = sizes.training.longest_positions
    positions = sizes.trained_lengths * trained
    half = positions // 2
    doubling = (trained // 2 * 2**power for power in range(30))
    return GibberishExperiment(
        recipe="gibberish",
        scale=scale,
        seed=seed,
        seed_count=sizes.seed_count,
        model=sizes.model,
        ring_positions=trained,
        frame_rate_hz=FRAME_RATE_HZ,
        stream=sizes.stream,
        training=sizes.training,
        ttt=sizes.ttt,
        views=_views(sizes),
        positions=positions,
        streams=sizes.streams,
        tokens_per_call=trained,
        probes=32,
        position_edges=(0, *(edge for edge in doubling if edge < 0.75 * half), half, positions),
        old_from=half,
        harm_nats=0.05,
        harm_recall=0.05,
    )


def _views(sizes: _Sizes) -> tuple[SuspectView, ...]:
    """Every subset of the suspects that causal weights allow, the leak alone and with all, and other cures of age."""
    others: list[Suspect] = [suspect for suspect in SUSPECTS if suspect != "leak"]
    subsets = chain.from_iterable(combinations(others, size) for size in range(len(others) + 1))
    return (
        *(_view(sizes, "-".join(subset) or SOUND, subset) for subset in subsets),
        _view(sizes, "leak", ["leak"]),
        _view(sizes, EVERYTHING, SUSPECTS),
        _view(sizes, "sound-by-reset", [], cure="reset"),
        _view(sizes, "sound-by-renormalising", [], cure="renormalise"),
    )


def _view(sizes: _Sizes, name: str, suspects: Collection[Suspect], cure: AgeCure = "decay") -> SuspectView:
    ttt = sizes.ttt
    if "bf16" in suspects:
        ttt = dataclasses.replace(ttt, precision="bf16")
    age_cure = None if "age" in suspects else cure
    if age_cure == "decay":
        ttt = dataclasses.replace(ttt, inner_decay=sizes.decay)
    if age_cure == "renormalise":
        ttt = dataclasses.replace(ttt, renormalises_inner_weights=True)
    return SuspectView(
        name=name,
        training=LEAKY if "leak" in suspects else CAUSAL,
        ttt=ttt,
        reset_every=sizes.training.longest_positions if age_cure == "reset" else None,
        control=None if name == SOUND else SOUND,
        suspects=tuple(suspect for suspect in SUSPECTS if suspect in suspects),
        age_cure=age_cure,
    )


def _smoke() -> _Sizes:
    """Seconds: both trainings and every view once. Its numbers mean nothing."""
    return _Sizes(
        model=ModelSizes(dim=16, num_heads=2, num_layers=2, context=4, pinned=2),
        stream=FactStreamSpec(keys=4, values=4),
        training=StreamTraining(
            learning_rate=3e-3, ttt_learning_rate=3e-3, warmup_steps=1, validate_every_steps=4, validation_streams=4,
            stages=(StreamStage(positions=16, streams_per_step=4, steps=4),),
        ),
        ttt=TTTConfig(hidden_size=16, num_heads=1, inner_model="linear", mini_batch_size=4, base_lr=8.0),
        decay=0.05,
        seed_count=1,
        streams=3,
        trained_lengths=32,
    )  # fmt: skip


def _cpu() -> _Sizes:
    """Minutes on two cores: 45,056 positions are an hour, and 11,264 updates."""
    return _Sizes(
        model=ModelSizes(dim=64, num_heads=4, num_layers=2, context=4, pinned=4),
        stream=FactStreamSpec(),
        training=StreamTraining(
            learning_rate=3e-3, ttt_learning_rate=3e-3, weight_decay=0.01, warmup_steps=50, validate_every_steps=150,
            stages=(StreamStage(positions=32, streams_per_step=48, steps=600),),
        ),
        ttt=TTTConfig(hidden_size=64, num_heads=1, inner_model="linear", mini_batch_size=4, base_lr=8.0),
        decay=0.03,
        seed_count=5,
        streams=12,
        trained_lengths=1408,
    )  # fmt: skip


def _gpu() -> _Sizes:
    """One GPU: eight layers, T of 512, head dimension 128 with 32 heads in the state, over a million positions."""
    cpu = _cpu()
    stages = (StreamStage(positions=512, streams_per_step=32, steps=4000),)
    return dataclasses.replace(
        cpu,
        model=ModelSizes(dim=512, num_heads=8, num_layers=8, context=16, pinned=4),
        stream=dataclasses.replace(cpu.stream, keys=64, values=64),
        training=dataclasses.replace(
            cpu.training, learning_rate=1e-3, ttt_learning_rate=1e-3, warmup_steps=200, validate_every_steps=500,
            stages=stages,
        ),
        ttt=TTTConfig(
            hidden_size=512, num_heads=32, head_dim=128, inner_model="mlp", mini_batch_size=16, base_lr=1.0
        ),
        seed_count=3,
        trained_lengths=2048,
    )  # fmt: skip


def _full() -> _Sizes:
    """Moshi's own context of 3,000 positions; TTT as published: 32 heads of 128, mini-batches of 64; ten hours."""
    gpu = _gpu()
    stages = (StreamStage(positions=3072, streams_per_step=8, steps=8000),)
    return dataclasses.replace(
        gpu,
        model=ModelSizes(dim=1024, num_heads=16, num_layers=16, context=64, pinned=4),
        training=dataclasses.replace(gpu.training, validate_every_steps=1000, stages=stages),
        ttt=TTTConfig(hidden_size=1024, num_heads=32, head_dim=128, inner_model="mlp", mini_batch_size=64, base_lr=1.0),
        trained_lengths=147,
    )
