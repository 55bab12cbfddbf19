"""What the page shows of each recipe: the question it asks, and the pictures that answer it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from analysis.pictures import (
    by_bucket,
    counted,
    detector,
    drift,
    inner_weights,
    long_streams,
    memory,
    streams,
    wraparound,
)
from analysis.pictures.drawing import Picture

SUSPECTS = ("sound", "wrap", "bf16", "age", "leak", "everything")
CURES = (
    "reset-plain", "reset-plain-decay-at-test", "reset-plain-renormalise-at-test", "reset-plain-reset-every-T",
    "window-only",
)  # fmt: skip


@dataclass(frozen=True)
class Shown:
    """One picture of a recipe: the function that draws it from a finished run, with its options."""

    draw: Callable[..., Picture]
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Section:
    """One recipe on the page."""

    recipe: str
    question: str
    pictures: tuple[Shown, ...]


def _shown(draw: Callable[..., Picture], **options: Any) -> Shown:
    return Shown(draw, options)


_state_bytes = partial(
    _shown, by_bucket.one_number, metric="memory/state_bytes_per_conversation", title="What one conversation holds",
    xlabel="bytes",
)  # fmt: skip

BACKBONES = {
    "llama-omni": "Llama-Omni", "moshi": "Moshi", "qwen-tts": "Qwen + TTS", "qwen-mimi": "Qwen + Mimi",
}  # fmt: skip
LENGTHS = {2: "16k", 3: "32k", 4: "64k"}


def _curriculum(backbone: str, title: str) -> Iterator[Section]:
    """Later stages of a backbone one by one, and all stages in a row."""
    pictures = (_shown(by_bucket.loss_by_position), _shown(by_bucket.recall_by_distance))
    for stage, length in LENGTHS.items():
        yield Section(f"{backbone}-stage{stage}", f"{title}: what does training on {length} positions add?", pictures)
    yield Section(f"{backbone}-curriculum", f"{title}: what does each stage of the curriculum give?", pictures)


SECTIONS = (
    Section(
        "llama-omni-stage1", "Llama-Omni: does TTT remember what an equally large window forgets?",
        (_shown(by_bucket.recall_by_distance), _shown(by_bucket.loss_by_position), _state_bytes()),
    ),
    Section(
        "moshi-stage1", "Moshi: does TTT remember what an equally large window forgets?",
        (_shown(by_bucket.recall_by_distance), _shown(by_bucket.loss_by_position), _state_bytes()),
    ),
    Section(
        "qwen-tts-stage1", "Qwen + TTS: does TTT remember what an equally large window forgets?",
        (_shown(by_bucket.recall_by_distance), _shown(by_bucket.loss_by_position), _state_bytes()),
    ),
    Section(
        "qwen-mimi-stage1", "Qwen + Mimi: does TTT remember what an equally large window forgets?",
        (_shown(by_bucket.recall_by_distance), _shown(by_bucket.loss_by_position), _state_bytes()),
    ),
    *(section for backbone, title in BACKBONES.items() for section in _curriculum(backbone, title)),
    Section(
        "curriculum-ablation", "Is a curriculum needed, or does going straight to 64k positions do?",
        (
            _shown(by_bucket.loss_by_position),
            _shown(by_bucket.recall_by_distance),
            _shown(inner_weights.inner_weights, statistic="W1_max"),
        ),
    ),
    Section(
        "gibberish", "Which of four suspects turns a long stream to gibberish?",
        (
            _shown(streams.along_stream, curve="word_excess_nats", views=SUSPECTS),
            _shown(streams.along_stream, curve="recall", views=SUSPECTS),
            _shown(streams.suspects, measured="word_loss"),
            _shown(streams.suspects, measured="recall"),
        ),
    ),
    Section(
        "kv-wraparound", "What breaks when Moshi's ring wraps, and why?",
        (
            _shown(wraparound.loss_around_wrap, length="inside"),
            _shown(wraparound.loss_around_wrap, length="past"),
            _shown(wraparound.signatures, length="inside", symptom="local loss"),
            _shown(wraparound.recall_beyond_ring, length="past"),
        ),
    ),
    Section(
        "endless-stream", "Does a TTT state that is never reset hold?",
        (
            _shown(streams.along_stream, curve="recall", views=CURES),
            _shown(streams.along_stream, curve="inner_norm", views=CURES),
            _shown(streams.cures),
        ),
    ),
    Section(
        "rope-reset", "Must positions restart with every mini-batch?",
        (
            _shown(streams.along_stream, curve="word_loss_nats"),
            _shown(streams.along_stream, curve="recall"),
        ),
    ),
    Section(
        "mini-batch-leak", "Does a model that was trained reading ahead decode?",
        (_shown(streams.decoding_gap),),
    ),
    Section(
        "bf16-drift", "Does rounding of the TTT state ever cost a word?",
        (
            _shown(drift.drift_by_updates, measure="state_error"),
            _shown(drift.growth_exponents),
            _shown(drift.word_loss_by_position),
        ),
    ),
    Section(
        "instability", "What does the monitor show when a step size is too large?",
        (
            _shown(inner_weights.inner_weights, statistic="W1_max"),
            _shown(inner_weights.inner_weights, statistic="inner_loss"),
        ),
    ),
    Section(
        "gibberish-detector", "How surely, and how soon, is gibberish told without a judge?",
        (
            _shown(detector.roc, view="units"),
            _shown(detector.roc, view="text"),
            _shown(detector.roc, view="sound"),
            _shown(detector.area_by_kind, view="sound"),
            _shown(detector.example_stream, view="units"),
        ),
    ),
    Section(
        "long-generation", "Which backbone speaks for hours, in memory that does not grow?",
        (
            _shown(long_streams.along, measure="held_bytes"),
            _shown(long_streams.along, measure="real_time_factor"),
            _shown(long_streams.along, measure="cross_entropy_nats"),
            _shown(long_streams.along, measure="share_of_streams_after_first_alarm"),
        ),
    ),
    Section(
        "memory", "What does one conversation hold in memory?",
        (_shown(memory.memory_bars, backbone="llama-omni"), _shown(memory.memory_bars, backbone="moshi")),
    ),
    Section(
        "adapter-size", "How many lines and files does an adapter take?",
        (_shown(counted.adapter_lines),),
    ),
    Section(
        "model-cards", "How large are six published models?",
        (_shown(counted.model_sizes),),
    ),
)  # fmt: skip
