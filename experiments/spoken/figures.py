"""Pictures of one experiment, drawn from what was logged: loss by position, recall by distance, learning curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.harness import metric_names as names

Curve = Sequence[tuple[int, float]]
RESOLUTION_DOTS_PER_INCH = 120


def draw_experiment(
    folder: Path,
    last_metrics: Mapping[str, Mapping[str, float]],
    curves: Mapping[str, Mapping[str, Curve]],
    position_edges: Sequence[int],
    distance_edges: Sequence[int],
) -> list[Path]:
    """Writes three PNGs into `folder` and gives their paths.

    last_metrics: arm -> metric -> last value. curves: arm -> metric -> (step, value) rows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return [
        _bucket_figure(
            folder / "loss_by_position.png", last_metrics, names.LOSS_BY_POSITION, position_edges,
            "Loss by position in the conversation", "position", "nats per text token",
        ),
        _bucket_figure(
            folder / "recall_by_distance.png", last_metrics, names.RECALL_BY_DISTANCE, distance_edges,
            "Recall of facts by distance", "positions between statement and question", "share recalled exactly",
        ),
        _learning_figure(folder / "learning_curves.png", last_metrics, curves),
    ]  # fmt: skip


def _bucket_figure(
    path: Path, arms: Mapping[str, Mapping[str, float]], section: str, edges: Sequence[int],
    title: str, x_label: str, y_label: str,
) -> Path:  # fmt: skip
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    buckets = names.buckets(edges)
    for arm, metrics in arms.items():
        points = [
            (place, metrics[names.bucket_name(section, *bucket)])
            for place, bucket in enumerate(buckets)
            if math.isfinite(metrics.get(names.bucket_name(section, *bucket), math.nan))
        ]
        axes.plot([x for x, _ in points], [y for _, y in points], marker="o", label=arm)
    if section == names.RECALL_BY_DISTANCE:
        _draw_chance(axes, arms)
    axes.set_xticks(range(len(buckets)), [names.bucket_label(*bucket) for bucket in buckets])
    axes.set(title=title, xlabel=x_label, ylabel=y_label)
    return _finished(figure, [axes], path)


def _draw_chance(axes: Axes, arms: Mapping[str, Mapping[str, float]]) -> None:
    chances = {metrics[names.RECALL_CHANCE] for metrics in arms.values() if names.RECALL_CHANCE in metrics}
    for chance in sorted(chances):
        axes.axhline(chance, color="grey", linestyle=":", label="guessing")
    axes.set_ylim(-0.03, 1.03)


def _learning_figure(
    path: Path, last_metrics: Mapping[str, Mapping[str, float]], curves: Mapping[str, Mapping[str, Curve]]
) -> Path:
    panels = {
        names.VALIDATION_TEXT_LOSS: "validation: nats per text token",
        names.VALIDATION_CTC_LOSS: "validation: CTC nats per unit",
        names.RECALL_ALL: "validation: share of facts recalled",
        names.RECALL_VALUE_LOSS: "validation: nats per fact value",
        names.TRAIN_TEXT_LOSS: "training: nats per text token",
        names.TRAIN_GRADIENT_NORM: "training: gradient norm",
    }
    figure = Figure(figsize=(12, 7), layout="constrained")
    grid = list(figure.subplots(2, 3).flat)
    for axes, (metric, title) in zip(grid, panels.items(), strict=True):
        for arm, logged in curves.items():
            rows = logged.get(metric, [])
            axes.plot([step for step, _ in rows], [value for _, value in rows], label=arm, linewidth=1)
        axes.set(title=title, xlabel="optimiser steps")
        if metric == names.RECALL_ALL:
            _draw_chance(axes, last_metrics)
    return _finished(figure, grid, path)


def _finished(figure: Figure, grid: Sequence[Axes], path: Path) -> Path:
    for axes in grid:
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize="small")
    figure.savefig(path, dpi=RESOLUTION_DOTS_PER_INCH)
    return path
