"""What does a conversation hold in memory, by how it is remembered: exact bytes at the published dimensions, checked.

On every backbone: attention as it is published, windows, and TTT above attention, above windows, and in every layer.
Nothing is trained; dimensions are the published ones at every scale, and the scales differ in what is run:

smoke   a few of the arms
cpu     all arms: bytes from the modules on the meta device, checked against what small streams really hold
gpu     the same, and caches filled to 16k positions at the published dimensions (needs a GPU)
full    filled to 48k positions, one conversation and four
"""

from __future__ import annotations

from collections.abc import Iterator

from backbones.llama_omni.config import MEL_FRAMES_PER_ENCODER_FRAME, LlamaOmniConfig
from backbones.speech import MEL_FRAME_RATE_HZ
from experiments.harness.study import Scale
from experiments.memory.configuration import (
    AllocationPlan,
    Arrangement,
    Backbone,
    BackboneName,
    CheckPlan,
    MemoryExperiment,
    TTTLayers,
)
from ttt_core.config import InnerModelName

K = 1024
TEXT_TOKENS_PER_SECOND_SAID = 3.2
"""Llama-Omni writes text, and this much of it is a second of speech (50 units a second in 25 frames a token)."""
MIMI_FRAMES_PER_SECOND = 12.5
"""Moshi's frames, which hear and say at once; on Qwen2.5 the same codec's, one position a frame."""
MOSHI_CONTEXT = 3000
GENERATOR_WINDOW_FRAMES = 1000
"""12.5 s of the speech generator's own 25 x 3.2 frames a second."""

SMOKE_ARMS = (
    "llama-omni-attention-all-hidden-states", "llama-omni-ttt-mlp-top-window", "moshi-ttt-linear-top",
    "qwen-1.5b-ttt-mlp-every",
)  # fmt: skip


def memory(*, scale: Scale, seed: int) -> MemoryExperiment:
    backbones = _backbones()
    arms = tuple(arm for backbone in backbones for arm in _arms(backbone.name))
    if scale == "smoke":
        arms = tuple(arm for arm in arms if arm.name in SMOKE_ARMS)
    used = {arm.backbone for arm in arms}
    return MemoryExperiment(
        recipe="memory",
        scale=scale,
        seed=seed,
        backbones=tuple(backbone for backbone in backbones if backbone.name in used),
        arms=arms,
        positions=(1 * K, 4 * K, 16 * K, 48 * K, 64 * K, 128 * K),
        batch_of=4,
        gpu_bytes=80e9,
        mini_batch_size=64,
        check=CheckPlan(
            batch_sizes=(1, 4),
            positions=(7, 18, 29),
            said_tokens=5,
            window=11,
            sinks=3,
            ring_positions=23,
            generator_window_frames=60,
            mini_batch_size=4,
        ),
        allocation=_allocation(scale),
    )


def _backbones() -> tuple[Backbone, ...]:
    omni = LlamaOmniConfig()
    heard = MEL_FRAME_RATE_HZ / (MEL_FRAMES_PER_ENCODER_FRAME * omni.speech_encoder_ds_rate)
    frames = {
        "positions_per_second_heard": MIMI_FRAMES_PER_SECOND,
        "positions_per_second_said": MIMI_FRAMES_PER_SECOND,
    }
    return (
        Backbone(
            name="llama-omni",
            positions_per_second_heard=heard,
            positions_per_second_said=TEXT_TOKENS_PER_SECOND_SAID,
        ),
        Backbone(name="moshi", **frames),
        Backbone(name="qwen-7b", **frames),
        Backbone(name="qwen-1.5b", **frames),
    )


def _arms(backbone: BackboneName) -> Iterator[Arrangement]:
    window, sinks = (MOSHI_CONTEXT if backbone == "moshi" else 2 * K), 4
    # Without a window the generator would grow where the language model does not.
    generator = GENERATOR_WINDOW_FRAMES if backbone == "llama-omni" else None

    def arm(layout: str, **what: object) -> Arrangement:
        return Arrangement(name=f"{backbone}-{layout}", backbone=backbone, layout=layout, **what)

    if backbone == "moshi":
        yield arm("ring")
        yield arm("ring-48k", ring_positions=48 * K)
    else:
        yield arm("attention")
    if backbone == "llama-omni":
        yield arm("attention-last-hidden-states", hidden_states="last")
        yield arm("attention-all-hidden-states", hidden_states="all")
    yield arm("window", window=window, sinks=sinks, generator_window_frames=generator)
    top: TTTLayers = "top-quarter"
    models: tuple[InnerModelName, ...] = ("linear", "mlp")
    for inner_model in models:
        yield arm(f"ttt-{inner_model}-top", inner_model=inner_model, ttt_layers=top)
    for inner_model in models:
        yield arm(
            f"ttt-{inner_model}-top-window", inner_model=inner_model, ttt_layers=top, window=window, sinks=sinks,
            generator_window_frames=generator,
        )  # fmt: skip
    for inner_model in models:
        yield arm(
            f"ttt-{inner_model}-every", inner_model=inner_model, ttt_layers="every", generator_window_frames=generator
        )


def _allocation(scale: Scale) -> AllocationPlan | None:
    if scale == "gpu":
        return AllocationPlan(batch_sizes=(1,), positions=(4 * K, 16 * K), positions_per_call=K)
    if scale == "full":
        return AllocationPlan(batch_sizes=(1, 4), positions=(4 * K, 48 * K), positions_per_call=K)
    return None
