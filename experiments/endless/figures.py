"""Pictures of an endless-stream experiment: the one for ten seconds, and the inner weights behind it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.endless.configuration import EndlessExperiment
from experiments.endless.measures import ViewMeasures
from experiments.endless.results import ViewResult
from experiments.harness.estimates import estimate

RESOLUTION_DOTS_PER_INCH = 130
Curve = Callable[[ViewMeasures], list[tuple[float, float]]]


def draw_all(folder: Path, experiment: EndlessExperiment, views: Mapping[str, ViewResult]) -> list[Path]:
    """Writes the PNGs that the finished views allow, and gives their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    shown = [view for view in views.values() if view.view.ttt is None or view.view.ttt.precision == "fp32"]
    paths = [_recall_figure(folder / "recall_by_position.png", experiment, shown)]
    if any(view.view.ttt is not None for view in shown):
        paths.append(_weights_figure(folder / "inner_weights.png", experiment, shown))
    if experiment.plan.topic_changes:
        paths.append(_topic_figure(folder / "topic_changes.png", experiment, shown))
    return paths


def _recall_figure(path: Path, experiment: EndlessExperiment, views: Sequence[ViewResult]) -> Path:
    """Recall and word loss by position, one column for each way of training."""
    columns = _columns(experiment, views)
    figure = Figure(figsize=(7.5 * len(columns), 8), layout="constrained")
    grid = figure.subplots(2, len(columns), squeeze=False)
    for (title, members), (top, bottom) in zip(columns.items(), grid.T, strict=True):
        for view in members:
            _draw(top, view, lambda m: _by_bucket(m, m.recall_between))
            _draw(bottom, view, lambda m: _by_bucket(m, m.streams.excess_between))
        top.set(title=title, ylabel=f"share recalled of facts up to {experiment.trained_positions} positions old")
        top.axhline(experiment.stream.chance_recall, color="grey", linestyle=":", label="guessing")
        top.set_ylim(-0.03, 1.03)
        bottom.set(ylabel="nats per word above the grammar's own")
        bottom.axhline(0.0, color="grey", linestyle=":", label="the grammar is known")
        for axes in (top, bottom):
            _finish(axes, experiment)
    times = experiment.plan.positions // experiment.trained_positions
    figure.suptitle(f"{experiment.recipe} ({experiment.scale}): streamed without an end, {times} x the trained length")
    figure.savefig(path, dpi=RESOLUTION_DOTS_PER_INCH)
    return path


def _weights_figure(path: Path, experiment: EndlessExperiment, views: Sequence[ViewResult]) -> Path:
    columns = _columns(experiment, [view for view in views if view.view.ttt is not None])
    figure = Figure(figsize=(7.5 * len(columns), 8), layout="constrained")
    grid = figure.subplots(2, len(columns), squeeze=False)
    for (title, members), (top, bottom) in zip(columns.items(), grid.T, strict=True):
        for view in members:
            _draw(top, view, lambda m: [(probe.position, probe.inner_norm) for probe in m.probes])
            _draw(bottom, view, lambda m: [(probe.position, probe.effective_step) for probe in m.probes])
        top.set(title=title, ylabel="norm of the inner weights", yscale="log")
        bottom.set(ylabel="one commit's step, as a share of that norm", yscale="log")
        for axes in (top, bottom):
            _finish(axes, experiment)
    figure.savefig(path, dpi=RESOLUTION_DOTS_PER_INCH)
    return path


def _topic_figure(path: Path, experiment: EndlessExperiment, views: Sequence[ViewResult]) -> Path:
    changes = experiment.plan.topic_changes
    figure = Figure(figsize=(7.5 * len(changes), 4.5), layout="constrained")
    for index, (axes, change) in enumerate(zip(figure.subplots(1, len(changes), squeeze=False)[0], changes,
                                               strict=True)):  # fmt: skip
        for view in views:
            if view.view.ttt is not None and view.view.reset_every is None:
                _draw(axes, view, lambda m, i=index: _excess(experiment, m, i))
        axes.axhline(0.0, color="grey", linestyle=":", label="never heard the old topic")
        axes.set(title=f"the topic changes at position {change}", xlabel="positions since the change")
        axes.set_ylabel("nats that an answer costs more")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="x-small")
    figure.savefig(path, dpi=RESOLUTION_DOTS_PER_INCH)
    return path


def _columns(experiment: EndlessExperiment, views: Sequence[ViewResult]) -> dict[str, list[ViewResult]]:
    """Views by how their models were trained; a model without TTT stands in every column."""
    titles = {False: "trained on reset sequences", True: "trained with the state carried over segments"}
    carries = {training.name: training.carries_state for training in experiment.trainings}
    found = {}
    for is_carried, title in titles.items():
        own = [view for view in views if view.view.ttt is not None and carries[view.view.training] == is_carried]
        if own:
            found[title] = own + [view for view in views if view.view.ttt is None]
    return found or {titles[False]: list(views)}


def _by_bucket(measures: ViewMeasures, between: Callable[[int, int], float]) -> list[tuple[float, float]]:
    edges = measures.streams.position_edges
    return [(math.sqrt(max(first, 1) * end), between(first, end)) for first, end in pairwise(edges)]


def _excess(experiment: EndlessExperiment, measures: ViewMeasures, change: int) -> list[tuple[float, float]]:
    if measures.topics is None:
        return []
    size = experiment.plan.topic_bin
    return [((index + 0.5) * size, value) for index, value in enumerate(measures.topics.excess()[change].tolist())]


def _draw(axes: Axes, view: ViewResult, curve: Curve) -> None:
    """The mean over seeds, with its interval as a band."""
    rows = [curve(measures) for measures in view.measures]
    places = [place for place, _ in rows[0]]
    found = [estimate([row[index][1] for row in rows]) for index in range(len(places))]
    kept = [(place, value) for place, value in zip(places, found, strict=True) if not math.isnan(value.mean)]
    style = "--" if view.view.reset_every is not None or view.view.ttt is None else "-"
    [line] = axes.plot([place for place, _ in kept], [value.mean for _, value in kept], marker="o", markersize=3,
                       linestyle=style, label=view.view.name)  # fmt: skip
    lows = numpy.array([value.low for _, value in kept])
    highs = numpy.array([value.high for _, value in kept])
    axes.fill_between([place for place, _ in kept], lows, highs, color=line.get_color(), alpha=0.12)


def _finish(axes: Axes, experiment: EndlessExperiment) -> None:
    axes.axvline(experiment.trained_positions, color="black", linestyle="--", linewidth=1, label="T: trained length")
    axes.set_xscale("log", base=2)
    axes.set_xlabel("position in the stream")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="x-small")
