"""Two pictures: how memory grows with hours of speech, and what it is after one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from experiments.memory import metrics as names
from experiments.memory.accounting import SECONDS_PER_HOUR, SECONDS_PER_MINUTE
from experiments.memory.configuration import MemoryExperiment
from experiments.memory.report import ArmRow

RESOLUTION_DOTS_PER_INCH = 120
GIGABYTE = 1e9
FIRST_HOUR, LAST_HOUR = 10 / SECONDS_PER_HOUR, 24.0
HOUR_TICKS = {10 / 3600: "10 s", 1 / 60: "1 min", 10 / 60: "10 min", 1: "1 h", 10: "10 h"}

_GREYS, _BLUE, _ORANGE, _GREEN, _RED = ("#111111", "#777777"), "#1f77b4", "#ff7f0e", "#2ca02c", "#d62728"
# Colour says what else is there, the dash which inner model: the same in every panel.
STYLES: dict[str, tuple[str, str]] = {
    "attention-all-hidden-states": (_GREYS[1], "--"),
    "attention-last-hidden-states": (_GREYS[1], ":"),
    "attention": (_GREYS[0], "-"),
    "ring": (_GREYS[0], "-"),
    "ring-48k": (_GREYS[1], "--"),
    "window": (_BLUE, "-"),
    "ttt-linear-top": (_ORANGE, "--"),
    "ttt-mlp-top": (_ORANGE, "-"),
    "ttt-linear-top-window": (_GREEN, "--"),
    "ttt-mlp-top-window": (_GREEN, "-"),
    "ttt-linear-every": (_RED, "--"),
    "ttt-mlp-every": (_RED, "-"),
}


def draw_memory(folder: Path, rows: Sequence[ArmRow], config: MemoryExperiment) -> list[Path]:
    """Writes the PNGs into `folder` and gives their paths; none where no arm logged anything."""
    logged = [row for row in rows if names.BYTES_AFTER_1_HOUR in row.metrics]
    if not logged:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    return [
        _growth(folder / "bytes_by_hours_of_speech.png", logged, config),
        _after_one_hour(folder / "bytes_after_one_hour.png", logged),
    ]


def _panels(rows: Sequence[ArmRow]) -> dict[str, list[ArmRow]]:
    panels: dict[str, list[ArmRow]] = {}
    for row in rows:
        panels.setdefault(row.arrangement.backbone, []).append(row)
    return panels


def _style(layout: str) -> tuple[str, str]:
    return STYLES.get(layout, (_GREYS[0], "-."))


def _growth(path: Path, rows: Sequence[ArmRow], config: MemoryExperiment) -> Path:
    """Bytes of one conversation against its hours, both logarithmic: flat is bounded, rising is not."""
    panels = _panels(rows)
    figure = Figure(figsize=(3.4 * len(panels) + 2.6, 5), layout="constrained")
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    hours = np.geomspace(FIRST_HOUR, LAST_HOUR, 200)
    for axes, (backbone, own) in zip(grid, panels.items(), strict=True):
        for row in own:
            per_hour = row.metrics[names.BYTES_PER_MINUTE] * SECONDS_PER_HOUR / SECONDS_PER_MINUTE
            colour, dash = _style(row.arrangement.layout)
            fixed = row.metrics[names.FIXED_BYTES_ALL_PARTS]
            # Attention broad and below: lines that lie on it show both.
            width, order = (3.4, 1) if row.arrangement.inner_model is None and colour != _BLUE else (1.7, 2)
            axes.plot(
                hours,
                (fixed + per_hour * hours) / GIGABYTE,
                color=colour,
                linestyle=dash,
                linewidth=width,
                zorder=order,
            )
        rate = own[0].metrics[names.POSITIONS_PER_SECOND]
        weights = max(row.metrics[names.WEIGHTS_BYTES] for row in own)
        room = (config.gpu_bytes - weights) / GIGABYTE
        axes.axhline(room, color="black", linewidth=0.8, alpha=0.6)
        axes.text(FIRST_HOUR * 1.2, room * 1.1, f"full: {config.gpu_bytes / GIGABYTE:.0f} GB less weights", fontsize=7)
        axes.set(xscale="log", yscale="log", title=f"{backbone}\n{rate:g} positions/s", xlabel="length of conversation")
        axes.set_xticks(list(HOUR_TICKS), list(HOUR_TICKS.values()))
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    grid[0].set_ylabel("GB (10⁹ bytes) that one conversation holds")
    grid[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    figure.suptitle("Memory of one conversation by its length: flat is bounded, rising is not")
    layouts = dict.fromkeys(row.arrangement.layout for row in rows)
    ordered = [layout for layout in STYLES if layout in layouts] + [each for each in layouts if each not in STYLES]
    keys = [
        Line2D([], [], color=_style(each)[0], linestyle=_style(each)[1], linewidth=1.7, label=each) for each in ordered
    ]
    figure.legend(handles=keys, loc="outside right upper", fontsize="small", title="what remembers")
    figure.savefig(path, dpi=RESOLUTION_DOTS_PER_INCH)
    return path


def _after_one_hour(path: Path, rows: Sequence[ArmRow]) -> Path:
    """Bars of fixed bytes and of what one hour of conversation adds."""
    panels = _panels(rows)
    tallest = max(len(own) for own in panels.values())
    figure = Figure(figsize=(11, 0.32 * tallest * ((len(panels) + 1) // 2) + 2), layout="constrained")
    columns = 1 if len(panels) == 1 else 2
    grid = figure.subplots(-(-len(panels) // columns), columns, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, (backbone, own) in zip(grid.flat, panels.items(), strict=False):
        _bars(axes, backbone, own)
    figure.legend(*grid.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize="small")
    figure.savefig(path, dpi=RESOLUTION_DOTS_PER_INCH)
    return path


def _bars(axes: Axes, backbone: str, rows: Sequence[ArmRow]) -> None:
    layouts = [row.arrangement.layout for row in rows]
    fixed = np.array([row.metrics[names.FIXED_BYTES_ALL_PARTS] for row in rows]) / GIGABYTE
    total = np.array([row.metrics[names.BYTES_AFTER_1_HOUR] for row in rows]) / GIGABYTE
    axes.barh(layouts, fixed, color=_BLUE, label="fixed")
    axes.barh(layouts, total - fixed, left=fixed, color=_ORANGE, label="added by one hour of conversation")
    for place, value in enumerate(total):
        axes.text(value, place, f" {value:.2f}", va="center", fontsize=8)
    axes.set(
        title=backbone, xlabel="GB (10⁹ bytes) of one conversation after 1 hour", xlim=(0, 1.15 * float(total.max()))
    )
    axes.tick_params(axis="y", labelsize=8)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
