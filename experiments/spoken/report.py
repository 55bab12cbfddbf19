"""The table at the end of an experiment, made of nothing but what the store has logged."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from experiments.harness import metric_names as names
from experiments.harness.text_table import aligned, human_bytes
from experiments.harness.tracking import LoggedRun
from experiments.spoken import metric_names as spoken_names


@dataclass(frozen=True, kw_only=True)
class ArmResult:
    """One arm of a finished experiment. run is None where the arm never started; first holds its untrained values."""

    arm: str
    run: LoggedRun | None
    untrained_loss: float | None


def result_table(results: Sequence[ArmResult], position_edges: Sequence[int], distance_edges: Sequence[int]) -> str:
    """One line per arm: losses by position, recall by distance, speed, memory; `-` where nothing was logged.

    Losses are nats per text token of the validation conversations, of recordings without words per code of the speech;
    recall is the share of asked fact values of which every token was the most likely one.
    """
    positions, distances = names.buckets(position_edges), names.buckets(distance_edges)
    told = told_losses(result.run.metrics for result in results if result.run is not None)
    header = [
        "arm", "status", f"{told.title} first", f"{told.title} last",
        *(f"{told.title} {names.bucket_label(*bucket)}" for bucket in positions),
        *(f"recall {names.bucket_label(*bucket)}" for bucket in distances),
        "positions/s", "state bytes", "peak memory", "of it model",
    ]  # fmt: skip
    rows = [_row(result, told, positions, distances) for result in results]
    kept = [index for index in range(len(header)) if index < 4 or any(row[index] != "-" for row in rows)]
    return aligned([[row[index] for index in kept] for row in [header, *rows]])


@dataclass(frozen=True, kw_only=True)
class ToldLosses:
    """Which of the logged losses tell how well conversations are predicted. by_position, by_time: their sections."""

    title: str
    unit: str
    whole: str
    by_position: str
    by_time: str


TEXT = ToldLosses(
    title="loss", unit="nats per text token", whole=names.VALIDATION_TEXT_LOSS, by_position=names.LOSS_BY_POSITION,
    by_time=spoken_names.LOSS_BY_TIME,
)  # fmt: skip
SPEECH = ToldLosses(
    title="speech loss", unit="nats per code of speech", whole=spoken_names.VALIDATION_AUDIO_LOSS,
    by_position=spoken_names.SPEECH_LOSS_BY_POSITION, by_time=spoken_names.SPEECH_LOSS_BY_TIME,
)  # fmt: skip


def told_losses(arms: Iterable[Mapping[str, float]]) -> ToldLosses:
    """Those of the text, or of the speech where arms logged no other: recordings without words."""
    logged = list(arms)
    no_text = any(SPEECH.whole in metrics for metrics in logged) and not any(TEXT.whole in m for m in logged)
    return SPEECH if no_text else TEXT


def _row(
    result: ArmResult, told: ToldLosses, positions: list[tuple[int, int]], distances: list[tuple[int, int]]
) -> list[str]:
    if result.run is None:
        return [result.arm, "not run", *["-"] * (6 + len(positions) + len(distances))]
    metrics = result.run.metrics

    def shown(name: str, form: str) -> str:
        return format(metrics[name], form) if name in metrics and math.isfinite(metrics[name]) else "-"

    def size(name: str) -> str:
        return human_bytes(metrics[name]) if name in metrics else "-"

    return [
        result.arm,
        result.run.status.lower(),
        "-" if result.untrained_loss is None else f"{result.untrained_loss:.3f}",
        shown(told.whole, ".3f"),
        *(shown(names.bucket_name(told.by_position, *bucket), ".3f") for bucket in positions),
        *(shown(names.bucket_name(names.RECALL_BY_DISTANCE, *bucket), ".2f") for bucket in distances),
        shown(names.SPEED, ",.0f"),
        size(names.STATE_BYTES),
        size(names.PEAK_BYTES),
        size(names.PEAK_BYTES_ABOVE_START),
    ]


def chance_line(results: Sequence[ArmResult]) -> str:
    """What guessing one of the possible fact values would recall."""
    chances = {
        result.run.metrics[names.RECALL_CHANCE]
        for result in results
        if result.run and names.RECALL_CHANCE in result.run.metrics
    }
    return f"recall by guessing: {', '.join(f'{chance:.3f}' for chance in sorted(chances))}" if chances else ""
