"""The picture of a gibberish experiment: what breaks, when, and what cures it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from experiments.endless.measures import ViewMeasures
from experiments.endless.results import ViewResult
from experiments.gibberish.configuration import EVERYTHING, SOUND, GibberishExperiment
from experiments.gibberish.results import cure_ladder, old
from experiments.harness.estimates import estimate

RESOLUTION_DOTS_PER_INCH = 130
LINES = {
    SOUND: ("black", "nothing wrong"),
    "bf16": ("tab:blue", "BF16 state"),
    "age": ("tab:orange", "state never forgets"),
    "wrap": ("tab:green", "cache wraps"),
    "leak": ("tab:red", "training read ahead"),
    EVERYTHING: ("tab:purple", "all four"),
}
"""Colour and label of the views that are drawn as curves."""

TICKS = {"1 s": 1, "10 s": 10, "1 min": 60, "10 min": 600, "1 h": 3600, "10 h": 36000}

Between = Callable[[ViewMeasures, int, int], float]


def draw_gibberish(
    path: Path, experiment: GibberishExperiment, views: Mapping[str, ViewResult], sentences: Sequence[str]
) -> Path:
    """Left: words and recall along the stream, each suspect alone. Right: both when old, cure after cure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(14, 9), layout="constrained")
    grid = figure.subplots(2, 2, width_ratios=(3, 2))
    measured: tuple[tuple[str, Between], ...] = (
        ("nats per word above the grammar's own", lambda m, first, end: m.streams.excess_between(first, end)),
        ("share of facts recalled", lambda m, first, end: m.recall_between(first, end)),
    )
    for (left, right), (label, between) in zip(grid, measured, strict=True):
        for name, (colour, called) in LINES.items():
            if name in views:
                _draw_curve(left, experiment, views[name], between, colour, called)
        _finish_curves(left, experiment)
        left.set_ylabel(label)
        _draw_ladder(right, experiment, views, between)
        right.set_xlabel(label)
    # Words cost hundredths of a nat or whole nats: both must be seen.
    grid[0][0].set_yscale("log")
    grid[0][1].set_xscale("log")
    for axis in (grid[0][0].yaxis, grid[0][1].xaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())
    guessed = experiment.stream.chance_recall
    grid[1][0].axhline(guessed, color="grey", linestyle=":", linewidth=1, label="guessing")
    grid[1][1].axvline(guessed, color="grey", linestyle=":", linewidth=1)
    grid[1][0].set_ylim(0, 1)
    grid[1][1].set_xlim(left=0)
    grid[0][0].set_title("each suspect alone, along the stream")
    grid[0][0].legend(fontsize="small", loc="center right", ncols=2)
    span = f"{experiment.minutes(experiment.old_from):.0f} to {experiment.minutes(experiment.positions):.0f} min"
    grid[0][1].set_title(f"one cure after the other, {span}")
    seeds = len(next(iter(views.values())).seeds)
    ttt = experiment.ttt
    figure.suptitle(
        f"What breaks a long stream, when, and what cures it ({experiment.scale}, {seeds} seeds; {ttt.inner_model} "
        f"inner model, mini-batches of {ttt.mini_batch_size})"
    )
    figure.text(0.01, -0.005, "\n".join(sentences), fontsize="small", va="top", wrap=True)
    figure.savefig(path, dpi=RESOLUTION_DOTS_PER_INCH, bbox_inches="tight")
    return path


def _draw_curve(
    axes: Axes, experiment: GibberishExperiment, view: ViewResult, between: Between, colour: str, called: str
) -> None:
    """The mean over seeds by minute, with its interval as a band."""
    buckets = list(pairwise(experiment.position_edges))
    found = [view.over_seeds(lambda m, bucket=bucket: between(m, *bucket)) for bucket in buckets]
    kept = [(bucket, value) for bucket, value in zip(buckets, found, strict=True) if not math.isnan(value.mean)]
    minutes = [experiment.minutes(math.sqrt(max(first, 1) * end)) for (first, end), _ in kept]
    # Lines that lie on each other must both be seen: the sound one is broad and light below them all.
    style = {"linewidth": 6, "alpha": 0.4} if view.view.name == SOUND else {"marker": "o", "markersize": 3}
    axes.plot(minutes, [value.mean for _, value in kept], color=colour, label=called, **style)
    lows, highs = (numpy.array([getattr(value, bound) for _, value in kept]) for bound in ("low", "high"))
    axes.fill_between(minutes, lows, highs, color=colour, alpha=0.12)


def _finish_curves(axes: Axes, experiment: GibberishExperiment) -> None:
    mini_batch = experiment.ttt.mini_batch_size
    marks = {
        experiment.ring_positions: "the ring is full; training ended here",
        3750: "3,750 frames",
        3750 * mini_batch: "3,750 updates",
    }
    axes.set_xscale("log")
    for position, label in marks.items():
        if position < experiment.positions:
            axes.axvline(experiment.minutes(position), color="grey", linestyle="--", linewidth=0.8)
            axes.annotate(
                label, (experiment.minutes(position), 0.02), xycoords=("data", "axes fraction"), rotation=90,
                fontsize="x-small", color="grey", ha="right", va="bottom",
            )  # fmt: skip
    shown = {
        label: seconds / 60
        for label, seconds in TICKS.items()
        if seconds / 60 <= experiment.minutes(experiment.positions)
    }
    axes.set_xticks(list(shown.values()), list(shown))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(right=experiment.minutes(experiment.positions))
    axes.set_xlabel("of speech")
    axes.grid(alpha=0.3)


def _draw_ladder(
    axes: Axes, experiment: GibberishExperiment, views: Mapping[str, ViewResult], between: Between
) -> None:
    steps = cure_ladder(views)
    found = [estimate([between(m, *old(experiment)) for m in views[name].measures]) for name, _ in steps]
    for row, value in enumerate(found):
        error = None if math.isnan(value.low) else [[value.mean - value.low], [value.high - value.mean]]
        colour = {0: LINES[EVERYTHING][0], len(found) - 1: LINES[SOUND][0]}.get(row, "tab:grey")
        axes.errorbar(value.mean, row, xerr=error, color=colour, marker="o", markersize=8, capsize=4)
    axes.set_yticks(range(len(steps)), [mended for _, mended in steps])
    axes.invert_yaxis()
    axes.grid(alpha=0.3, axis="x")
