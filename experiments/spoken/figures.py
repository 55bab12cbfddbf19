"""Pictures of one experiment, drawn from what was logged: loss by position, recall by distance, learning curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.harness import metric_names as names
from experiments.spoken import metric_names as spoken_names
from experiments.spoken.backbone import SpokenBackbone
from experiments.spoken.configuration import EvaluationPlan
from experiments.spoken.report import told_losses

Curve = Sequence[tuple[int, float]]
Metrics = Mapping[str, float]
RESOLUTION_DOTS_PER_INCH = 120


@dataclass(frozen=True, kw_only=True)
class _BucketPanel:
    """One curve per arm over the buckets of a section of metrics."""

    section: str
    edges: Sequence[int]
    x_label: str
    shows_chance: bool = False


def draw_experiment(
    folder: Path,
    last_metrics: Mapping[str, Metrics],
    curves: Mapping[str, Mapping[str, Curve]],
    plan: EvaluationPlan,
    panels: Mapping[str, str],
) -> list[Path]:
    """Writes PNGs into `folder` and gives their paths: three, and none of recall where no facts were asked for.

    last_metrics: arm -> metric -> last value. curves: arm -> metric -> (step, value) rows. panels: `learning_panels`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    told = told_losses(last_metrics.values())
    loss_panels = (
        _BucketPanel(section=told.by_position, edges=plan.position_edges, x_label="position"),
        _BucketPanel(section=told.by_time, edges=plan.seconds_edges, x_label="seconds"),
    )
    recall_panels = (
        _BucketPanel(
            section=names.RECALL_BY_DISTANCE, edges=plan.distance_edges, shows_chance=True,
            x_label="positions since the last mention",
        ),
        _BucketPanel(
            section=spoken_names.RECALL_BY_SECONDS, edges=plan.seconds_edges, shows_chance=True,
            x_label="seconds since the last mention",
        ),
    )  # fmt: skip
    drawn = [
        _bucket_figure(
            folder / "loss_by_position.png", last_metrics, loss_panels, "Loss along the conversation", told.unit
        )
    ]
    if any(names.RECALL_CHANCE in metrics for metrics in last_metrics.values()):
        drawn.append(
            _bucket_figure(
                folder / "recall_by_distance.png", last_metrics, recall_panels, "Recall of facts by distance",
                "share recalled exactly",
            )
        )  # fmt: skip
    logged = {name: title for name, title in panels.items() if any(rows.get(name) for rows in curves.values())}
    return [*drawn, _learning_figure(folder / "learning_curves.png", last_metrics, curves, logged or panels)]


def learning_panels(backbone: SpokenBackbone) -> dict[str, str]:
    """{metric: title} of the learning curves."""
    speech = {} if backbone.speech_loss is None else {backbone.speech_loss: f"validation: {backbone.speech_loss_title}"}
    return {
        names.VALIDATION_TEXT_LOSS: "validation: nats per text token",
        **speech,
        names.RECALL_ALL: "validation: share of facts recalled",
        names.RECALL_VALUE_LOSS: "validation: nats per fact value",
        names.TRAIN_TEXT_LOSS: "training: nats per text token",
        names.TRAIN_GRADIENT_NORM: "training: gradient norm",
    }


def _bucket_figure(
    path: Path, arms: Mapping[str, Metrics], panels: Sequence[_BucketPanel], title: str, y_label: str
) -> Path:
    figure = Figure(figsize=(6 * len(panels), 4.2), layout="constrained")
    grid = list(figure.subplots(1, len(panels), sharey=True, squeeze=False).flat)
    for axes, panel in zip(grid, panels, strict=True):
        _draw_buckets(axes, arms, panel)
    grid[0].set_ylabel(y_label)
    figure.suptitle(title)
    return _finished(figure, grid, path)


def _draw_buckets(axes: Axes, arms: Mapping[str, Metrics], panel: _BucketPanel) -> None:
    buckets = names.buckets(panel.edges)
    places = [names.bucket_name(panel.section, *bucket) for bucket in buckets]
    measured = [
        place for place, name in enumerate(places) if any(math.isfinite(m.get(name, math.nan)) for m in arms.values())
    ]
    for arm, metrics in arms.items():
        points = [
            (place, metrics[places[place]]) for place in measured if math.isfinite(metrics.get(places[place], math.nan))
        ]
        axes.plot([x for x, _ in points], [y for _, y in points], marker="o", label=arm)
    if panel.shows_chance:
        _draw_chance(axes, arms)
    axes.set_xticks(measured, [names.bucket_label(*buckets[place]) for place in measured])
    axes.set_xlabel(panel.x_label)


def _draw_chance(axes: Axes, arms: Mapping[str, Metrics]) -> None:
    chances = {metrics[names.RECALL_CHANCE] for metrics in arms.values() if names.RECALL_CHANCE in metrics}
    for chance in sorted(chances):
        axes.axhline(chance, color="grey", linestyle=":", label="guessing")
    axes.set_ylim(-0.03, 1.03)


def _learning_figure(
    path: Path, last_metrics: Mapping[str, Metrics], curves: Mapping[str, Mapping[str, Curve]],
    panels: Mapping[str, str],
) -> Path:  # fmt: skip
    figure = Figure(figsize=(12, 7), layout="constrained")
    grid = list(figure.subplots(2, 3).flat)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    for axes, (metric, title) in zip(grid, panels.items(), strict=False):
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
