"""The pictures: a ROC for every kind of damage, and one stream of each as it breaks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.quality.configuration import DetectorExperiment
from experiments.quality.evaluation import FALSE_POSITIVE_RATES
from experiments.quality.results import ViewFindings, group_of

RESOLUTION_DOTS_PER_INCH = 110
SHOWN_EXAMPLES = ("shuffled", "loop-4s", "silence", "reversed")
STYLES = {"gross": "-", "subtle": "--"}
LOWEST_DRAWN = 1e-3
HIGHEST_DRAWN = 1e4


def draw_rocs(folder: Path, experiment: DetectorExperiment, views: Mapping[str, ViewFindings]) -> Path:
    """One panel a view: the share of gibberish windows told, by the share of clean windows that are told too."""
    figure, panels = _panels(experiment, views, "single windows of planted gibberish against clean speech")
    for axes, (name, view) in zip(panels, views.items(), strict=True):
        for number, kind in enumerate(view.kinds):
            rates = np.mean([each.kinds[kind].true_positive_rates for each in view.evaluations], axis=0)
            label = f"{kind} ({view.kinds[kind].auc.mean:.3f})"
            places = np.maximum(FALSE_POSITIVE_RATES, LOWEST_DRAWN)
            axes.plot(places, rates, label=label, color=colormaps["tab10"](number), linestyle=STYLES[group_of(kind)])
        axes.set(
            title=f"{name}: {view.false_alarms.events} false alarms in {view.false_alarms.hours:.1f} h",
            xlabel="share of clean windows above the threshold", ylabel="share of gibberish windows above it",
            xscale="log", xlim=(LOWEST_DRAWN, 1), ylim=(-0.02, 1.02),
        )  # fmt: skip
        axes.legend(fontsize="x-small", loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3)
    return _saved(figure, folder / "roc.png")


def draw_examples(folder: Path, experiment: DetectorExperiment, views: Mapping[str, ViewFindings]) -> Path:
    """One panel a view: how far the windows of one held-out stream are from speech, for some kinds of damage."""
    figure, panels = _panels(experiment, views, "one held-out stream, damaged from the dotted line on")
    for axes, (name, view) in zip(panels, views.items(), strict=True):
        first = view.evaluations[0]
        for kind in SHOWN_EXAMPLES:
            if kind in first.examples:
                ends, sizes = np.array(first.examples[kind]).T
                axes.plot(ends, np.clip(sizes, 1e-2, HIGHEST_DRAWN), label=kind, marker="o", markersize=2.5)
        axes.axhline(first.threshold, color="black", linewidth=0.9, linestyle="--", label="threshold")
        axes.axvline(next(iter(first.kinds.values())).onsets[0].onset_s, color="dimgrey", linestyle=":", label="onset")
        axes.set(
            title=name, xlabel="seconds of the stream (end of the window)", yscale="log",
            ylabel="distance from speech (1: a measure's limit)",
        )  # fmt: skip
        axes.legend(fontsize="x-small", loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3)
    return _saved(figure, folder / "example_streams.png")


def _panels(experiment: DetectorExperiment, views: Mapping[str, ViewFindings], what: str) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(5.4 * len(views), 5.2), layout="constrained")
    seeds = max(len(view.evaluations) for view in views.values())
    figure.suptitle(f"{experiment.recipe} ({experiment.scale}, seeds: {seeds}): {what}")
    panels = list(np.atleast_1d(figure.subplots(1, len(views))))
    for axes in panels:
        axes.grid(alpha=0.3)
    return figure, panels


def _saved(figure: Figure, path: Path) -> Path:
    figure.savefig(path, dpi=RESOLUTION_DOTS_PER_INCH)
    return path
