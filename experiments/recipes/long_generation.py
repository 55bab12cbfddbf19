"""Which backbone speaks for hours: memory, time and quality along a conversation that is never reset?

The models that stage 1 trains, found where its runs are and trained where they are not, go on with conversations: the
user's turns are the data's, their own turns are what they make themselves, and nothing is ever reset.

BACKBONE-ttt-mlp, -full-attention   several conversations of ten minutes (gpu: an hour, and sliding-window)
BACKBONE-two-hours                  ttt-mlp again, for two hours
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from experiments.harness.study import Scale
from experiments.long_generation.configuration import LongGenerationExperiment, SpeakingArm, SymbolWindows
from experiments.long_generation.trained_models import RECIPE
from experiments.spoken.configuration import SpokenExperiment

MIXERS = ("ttt-mlp", "sliding-window", "full-attention")
TWO_HOURS_S = 7200.0


@dataclass(frozen=True, kw_only=True)
class _Sizes:
    """What the scales differ in. streams: of each arm, and of each of two hours, where there are any."""

    streams: int
    stream_s: float
    bucket_s: float
    streams_of_two_hours: int
    conversations: int
    conversation_positions: int
    model_hours: float
    calibration_hours: float
    control_hours: float
    false_alarms_per_hour: float
    mixers: tuple[str, ...] = MIXERS


def long_generation(*, scale: Scale, seed: int, models: Sequence[SpokenExperiment]) -> LongGenerationExperiment:
    """models: what trains each backbone, at that scale and seed."""
    sizes = {"smoke": _SMOKE, "cpu": _CPU, "gpu": _GPU, "full": _FULL}[scale]
    return LongGenerationExperiment(
        recipe=RECIPE,
        scale=scale,
        seed=seed,
        models=tuple(models),
        arms=_arms(sizes, [model.backbone for model in models]),
        conversations=sizes.conversations,
        conversation_positions=sizes.conversation_positions,
        model_hours=sizes.model_hours,
        calibration_hours=sizes.calibration_hours,
        control_hours=sizes.control_hours,
        known_sentence_share=0.5,
        false_alarms_per_hour=sizes.false_alarms_per_hour,
        windows_to_raise=2,
        # As gibberish-detector measures the errors of.
        units=SymbolWindows(window_s=5.0, ngram_order=3, remembered_symbols=1500),
        text=SymbolWindows(window_s=10.0, ngram_order=3, remembered_symbols=120),
        sound_window_s=5.0,
    )


def _arms(sizes: _Sizes, backbones: Sequence[str]) -> tuple[SpeakingArm, ...]:
    """The longest first among those that are ready, so that a core is not left to one of them at the end."""
    short = [
        SpeakingArm(
            name=f"{backbone}-{mixer}", backbone=backbone, mixer=mixer, streams=sizes.streams,
            stream_s=sizes.stream_s, bucket_s=sizes.bucket_s,
            conversations_apart=sizes.conversations // 2 // sizes.streams,
        )
        for mixer in sizes.mixers
        for backbone in backbones
    ]  # fmt: skip
    long = [
        SpeakingArm(
            name=f"{backbone}-two-hours", backbone=backbone, mixer="ttt-mlp", streams=sizes.streams_of_two_hours,
            stream_s=TWO_HOURS_S, bucket_s=600.0, first_conversation=sizes.conversations // 2,
            conversations_apart=sizes.conversations // 2 // sizes.streams_of_two_hours,
        )
        for backbone in backbones
        if sizes.streams_of_two_hours
    ]  # fmt: skip
    first = len(backbones)
    return (*short[:first], *long, *short[first:])


_SMOKE = _Sizes(
    streams=2, stream_s=20.0, bucket_s=10.0, streams_of_two_hours=0, conversations=16, conversation_positions=512,
    model_hours=0.02, calibration_hours=0.06, control_hours=0.03, false_alarms_per_hour=60.0, mixers=("ttt-mlp",),
)  # fmt: skip
"""Seconds. Its numbers mean nothing."""

_CPU = _Sizes(
    streams=3, stream_s=600.0, bucket_s=60.0, streams_of_two_hours=1, conversations=220, conversation_positions=16384,
    model_hours=1.0, calibration_hours=41.0, control_hours=16.0, false_alarms_per_hour=0.025,
    mixers=("ttt-mlp", "full-attention"),
)  # fmt: skip
"""Ten minutes and two hours with the models of stage 1 at scale cpu.

The window of equal bytes is left to `gpu`: two more trainings and six streams are a quarter of an hour. Real speech
raises each of the two alarms (gibberish, silence) once in forty hours: an hour of it passes both in 19 of 20 cases.
"""

_GPU = _Sizes(
    streams=20, stream_s=3600.0, bucket_s=300.0, streams_of_two_hours=20, conversations=1200,
    conversation_positions=16384, model_hours=4.0, calibration_hours=205.0, control_hours=100.0,
    false_alarms_per_hour=0.005,
)  # fmt: skip
"""An hour and two hours, twenty streams of each."""

_FULL = _GPU
"""As gpu, with the models of stage 1 at scale full, trained from random weights: pretrained ones are not taken, and
qwen-mimi's Mimi codes are refused, so that the whole never finishes at this scale."""
