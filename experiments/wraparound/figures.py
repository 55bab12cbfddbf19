"""Pictures of the wraparound experiment, from the measures of finished views."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments.harness import metric_names as names
from experiments.wraparound.configuration import WraparoundExperiment
from experiments.wraparound.results import ViewResult

RESOLUTION_DOTS_PER_INCH = 130
MAIN_ARMS = {
    "inside": ("ring-inside", "sinks-inside", "recomputed-inside", "full-inside"),
    "past": ("ring-past", "wide-window-past", "full-past", "ttt-past", "ttt-and-window-past"),
}
"""What the main figure shows, one row a training length. Every other view is in the table."""

SWEEP = ("half-the-window", "ring", "twice-the-window", "four-times-the-window")


def draw_all(folder: Path, experiment: WraparoundExperiment, views: Mapping[str, ViewResult]) -> list[Path]:
    """Writes every PNG that the finished views allow, and gives their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    return [
        _main_figure(folder / "wraparound.png", experiment, views),
        _sweep_figure(folder / "windows_swept.png", experiment, views),
        _free_running_figure(folder / "free_running.png", experiment, views),
    ]


def _main_figure(path: Path, experiment: WraparoundExperiment, views: Mapping[str, ViewResult]) -> Path:
    figure = Figure(figsize=(17, 8.5), layout="constrained")
    grid = figure.subplots(2, 3)
    for row, (length, arms) in enumerate(MAIN_ARMS.items()):
        trained = (experiment.inside if length == "inside" else experiment.past).longest_positions
        shown = [views[arm] for arm in arms if arm in views]
        left, middle, right = grid[row]
        for view in shown:
            _draw_by_position(left, view, names.EXCESS_LOSS_BY_POSITION, experiment)
            _draw_by_position(middle, view, names.NEAR_RECALL_BY_POSITION, experiment)
            _draw(right, view, _buckets(names.RECALL_BY_DISTANCE, experiment.view_plan.distance_edges))
        title = f"trained on {trained} positions"
        left.set(title=f"Loss by position: {title}", ylabel="nats per word above the grammar's")
        near = f"recall of facts up to {experiment.view_plan.near - 1} positions old"
        middle.set(title=f"Near recall by position: {title}", ylabel=near)
        right.set(title=f"Recall by distance: {title}", ylabel="share of facts recalled")
        left.axhline(0.0, color="grey", linestyle=":", label="knows the grammar")
        for axes in (middle, right):
            axes.axhline(experiment.stream.chance_recall, color="grey", linestyle=":", label="guessing")
            axes.set_ylim(-0.03, 1.03)
        _finish_positions(left, experiment, trained, "position in the stream")
        _finish_positions(middle, experiment, trained, "position in the stream")
        _finish_positions(right, experiment, None, "positions between statement and answer")
    figure.suptitle(
        f"{experiment.recipe}, scale {experiment.scale}: what happens when the ring wraps (median and range of seeds)"
    )
    figure.savefig(path, dpi=RESOLUTION_DOTS_PER_INCH)
    return path


def _sweep_figure(path: Path, experiment: WraparoundExperiment, views: Mapping[str, ViewResult]) -> Path:
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    for axes, length in zip(figure.subplots(1, 2), ("inside", "past"), strict=True):
        trained = (experiment.inside if length == "inside" else experiment.past).longest_positions
        for arm in SWEEP:
            if f"{arm}-{length}" in views:
                view = views[f"{arm}-{length}"]
                line = _draw_by_position(axes, view, names.EXCESS_LOSS_BY_POSITION, experiment)
                assert view.view.window is not None
                axes.axvline(view.view.window, color=line.get_color(), linestyle="--", linewidth=0.8)
        axes.set(title=f"Windows swept: trained on {trained} positions", ylabel="nats per word above the grammar's")
        _finish_positions(axes, experiment, trained, "position in the stream (dashed: end of each window)", wrap=False)
    figure.savefig(path, dpi=RESOLUTION_DOTS_PER_INCH)
    return path


def _free_running_figure(path: Path, experiment: WraparoundExperiment, views: Mapping[str, ViewResult]) -> Path:
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    for axes, length in zip(figure.subplots(1, 2), ("inside", "past"), strict=True):
        for arm in ("ring", "free", "ttt", "free-ttt"):
            if f"{arm}-{length}" in views:
                view = views[f"{arm}-{length}"]
                _draw_by_position(axes, view, names.LEGAL_WORDS_BY_POSITION, experiment)
        axes.set(title=f"Own words read back ({length})", ylabel="probability given to words the grammar allows")
        _finish_positions(axes, experiment, None, "position in the stream")
    figure.savefig(path, dpi=RESOLUTION_DOTS_PER_INCH)
    return path


def _buckets(section: str, edges: Sequence[int]) -> dict[str, tuple[int, int]]:
    """Metric -> the bucket it is of."""
    return {names.bucket_name(section, *bucket): bucket for bucket in names.buckets(edges)}


def _draw_by_position(axes: Axes, view: ViewResult, section: str, experiment: WraparoundExperiment) -> Line2D:
    """Of the short streams up to the second wrap, of the long ones from there on."""
    plan, second_wrap = experiment.view_plan, 2 * experiment.model.context
    late = {name: bucket for name, bucket in _buckets(section, plan.position_edges).items() if bucket[0] >= second_wrap}
    return _draw(axes, view, _buckets(f"onset_{section}", plan.onset_edges) | late)


def _draw(axes: Axes, view: ViewResult, metrics: Mapping[str, tuple[int, int]]) -> Line2D:
    """Median over seeds at the middle of each bucket, the range of the seeds as a band; gives the line."""
    rows = []
    for name, (first, end) in metrics.items():
        values = [logged[name] for logged in view.metrics if name in logged]
        if values:
            rows.append((math.sqrt(max(first, 1) * end), statistics.median(values), min(values), max(values)))
    places, middle, low, high = (numpy.array(column) for column in zip(*rows, strict=True)) if rows else [[]] * 4
    [line] = axes.plot(places, middle, marker="o", markersize=3, label=view.view.name)
    axes.fill_between(places, low, high, color=line.get_color(), alpha=0.15)
    return line


def _finish_positions(
    axes: Axes, experiment: WraparoundExperiment, trained: int | None, label: str, wrap: bool = True
) -> None:
    if wrap:
        axes.axvline(experiment.model.context, color="black", linestyle="--", linewidth=1, label="the ring wraps")
    if trained is not None and trained != experiment.model.context:
        axes.axvline(trained, color="tab:purple", linestyle="-.", linewidth=1, label="longest stream of training")
    axes.set_xscale("log", base=2)
    axes.set_xlabel(label)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="x-small")
