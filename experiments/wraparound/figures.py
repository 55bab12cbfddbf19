"""Pictures of the wraparound experiment, from the measures of finished views."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments.harness import metric_names as names
from experiments.harness.estimates import Estimate
from experiments.wraparound.configuration import WraparoundExperiment
from experiments.wraparound.results import ViewResult

RESOLUTION_DOTS_PER_INCH = 130
MAIN_ARMS = {
    "inside": ("ring-inside", "sinks-inside", "recomputed-inside", "full-inside"),
    "past": ("ring-past", "sinks-past", "full-past", "ttt-past", "ttt-and-window-past"),
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
            _draw_by_bucket(left, view, names.LOSS_BY_POSITION, experiment.view_plan.position_edges)
            _draw_by_bucket(middle, view, names.NEAR_RECALL_BY_POSITION, experiment.view_plan.position_edges)
            _draw_by_bucket(right, view, names.RECALL_BY_DISTANCE, experiment.view_plan.distance_edges)
        title = f"trained on {trained} positions ({length} the context)"
        left.set(title=f"Local loss by position: {title}", ylabel="nats per word")
        near = f"share recalled of facts heard less than {experiment.view_plan.near} positions ago"
        middle.set(title=f"Near recall by position: {title}", ylabel=near)
        right.set(title=f"Recall by distance: {title}", ylabel="share of facts recalled")
        left.axhline(experiment.stream.word_entropy_nats, color="grey", linestyle=":", label="no model can go below")
        for axes in (middle, right):
            axes.axhline(experiment.stream.chance_recall, color="grey", linestyle=":", label="guessing")
            axes.set_ylim(-0.03, 1.03)
        _finish_positions(left, experiment, trained, "position in the stream")
        _finish_positions(middle, experiment, trained, "position in the stream")
        _finish_positions(right, experiment, None, "positions between statement and answer")
    figure.suptitle(f"{experiment.recipe}, scale {experiment.scale}: what happens when the ring wraps")
    figure.savefig(path, dpi=RESOLUTION_DOTS_PER_INCH)
    return path


def _sweep_figure(path: Path, experiment: WraparoundExperiment, views: Mapping[str, ViewResult]) -> Path:
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    for axes, length in zip(figure.subplots(1, 2), ("inside", "past"), strict=True):
        trained = (experiment.inside if length == "inside" else experiment.past).longest_positions
        for arm in SWEEP:
            if f"{arm}-{length}" in views:
                view = views[f"{arm}-{length}"]
                line = _draw_by_bucket(axes, view, names.LOSS_BY_POSITION, experiment.view_plan.position_edges)
                assert view.view.window is not None
                axes.axvline(view.view.window, color=line.get_color(), linestyle="--", linewidth=0.8)
        axes.set(title=f"Windows swept: trained on {trained} positions", ylabel="nats per word")
        _finish_positions(axes, experiment, trained, "position in the stream (dashed: end of each window)", wrap=False)
    figure.savefig(path, dpi=RESOLUTION_DOTS_PER_INCH)
    return path


def _free_running_figure(path: Path, experiment: WraparoundExperiment, views: Mapping[str, ViewResult]) -> Path:
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    for axes, length in zip(figure.subplots(1, 2), ("inside", "past"), strict=True):
        for arm in ("ring", "free", "ttt", "free-ttt"):
            if f"{arm}-{length}" in views:
                view = views[f"{arm}-{length}"]
                _draw_by_bucket(axes, view, names.LEGAL_WORDS_BY_POSITION, experiment.view_plan.position_edges)
        axes.set(title=f"Own words read back ({length})", ylabel="probability given to words the grammar allows")
        _finish_positions(axes, experiment, None, "position in the stream")
    figure.savefig(path, dpi=RESOLUTION_DOTS_PER_INCH)
    return path


def _draw_by_bucket(axes: Axes, view: ViewResult, section: str, edges: Sequence[int]) -> Line2D:
    """Mean over seeds at the middle of each bucket with its interval as a band; gives the line."""
    rows = [(bucket, view.metric(names.bucket_name(section, *bucket))) for bucket in names.buckets(edges)]
    kept: list[tuple[float, Estimate]] = [
        (math.sqrt(max(first, 1) * end), found) for (first, end), found in rows if math.isfinite(found.mean)
    ]
    places = numpy.array([place for place, _ in kept])
    [line] = axes.plot(places, [found.mean for _, found in kept], marker="o", markersize=3, label=view.view.name)
    bands = [(place, found) for place, found in kept if math.isfinite(found.low)]
    axes.fill_between(
        [place for place, _ in bands], [found.low for _, found in bands], [found.high for _, found in bands],
        color=line.get_color(), alpha=0.15,
    )  # fmt: skip
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
