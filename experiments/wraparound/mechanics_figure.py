"""The mechanics in one picture: where streaming leaves the window, and what a step costs far into a stream."""

from __future__ import annotations

import re
from pathlib import Path

import numpy
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

RESOLUTION_DOTS_PER_INCH = 130
SMALLEST_SHOWN = 1e-8
Arrays = dict[str, NDArray[numpy.float64]]


def draw_mechanics(path: Path, arrays_file: Path) -> Path:
    """Writes one PNG of the arrays that the mechanics arm kept."""
    with numpy.load(arrays_file) as stored:
        arrays: Arrays = {name: stored[name] for name in stored.files}
    path.parent.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(16, 4.8), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    _draw_streamed(left, arrays)
    _draw_cache(middle, arrays)
    _draw_state(right, arrays)
    for axes in (left, middle, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize="x-small")
    figure.savefig(path, dpi=RESOLUTION_DOTS_PER_INCH)
    return path


def _draw_streamed(axes: Axes, arrays: Arrays) -> None:
    for name, values in arrays.items():
        found = re.fullmatch(r"streamed\.difference_(with_room_)?(\d+)_tokens?_per_call", name)
        if found is None:
            continue
        has_room, tokens = found[1] is not None, int(found[2])
        label = f"{tokens} a call" + (", ring with room" if has_room else "")
        shown = numpy.maximum(values, SMALLEST_SHOWN)
        positions = numpy.arange(1, len(shown) + 1)
        axes.plot(positions, shown, linestyle=":" if has_room else "-", color=f"C{tokens % 10}", label=label)
    axes.set_yscale("log")
    axes.set(
        title="Streamed against windowed, tokens a call", xlabel="position",
        ylabel="largest difference / largest output",
    )  # fmt: skip


def _draw_cache(axes: Axes, arrays: Arrays) -> None:
    for which, label in (("with", "with the cache"), ("without", "without: everything anew")):
        rows = arrays[f"cache_cost.position_and_ms_{which}"]
        axes.plot(rows[:, 0], rows[:, 2], marker="o", label=label)
        axes.fill_between(rows[:, 0], rows[:, 1], rows[:, 3], alpha=0.2)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set(title="A step with the cache and without", xlabel="position", ylabel="CPU ms (median, quartiles)")


def _draw_state(axes: Axes, arrays: Arrays) -> None:
    for memory in ("ttt_linear", "ttt_mlp", "cache"):
        rows = arrays[f"state_cost.{memory}_position_and_ms"]
        axes.plot(rows[:, 0], rows[:, 2], marker="o", label=memory.replace("_", "-"))
        axes.fill_between(rows[:, 0], rows[:, 1], rows[:, 3], alpha=0.2)
    axes.set_xscale("log", base=2)
    axes.set(title="A step far into a stream", xlabel="position", ylabel="CPU ms (median, quartiles)")
