"""What the fast weights do while a model is trained: the monitor's rows of every arm with TTT."""

from __future__ import annotations

import re
from collections.abc import Sequence

from analysis.pictures.drawing import Picture, draw_lines, mark, panel, with_legend
from analysis.pictures.finished import FinishedRun, NothingToShowError, chosen, over_seeds
from analysis.tables import Table

HEALTHY_W1 = 10.0
STATISTICS = {
    "W1_norm": "norm of W1",
    "W1_max": "largest |W1|",
    "update_size": "size of an update",
    "distance_from_initial": "distance from the learned start",
    "inner_loss": "inner loss",
    "gate": "gate",
}


def monitored_layers(found: FinishedRun) -> list[str]:
    """Layers that the monitor looked at, e.g. `layer03`."""
    names = {name for run in found.arms for name in run.metrics}
    layers = sorted({match[1] for name in names if (match := re.match(r"ttt/(layer\d+)/", name))})
    if not layers:
        raise NothingToShowError(f"no finished arm of {found.caption} mounts TTT under the monitor")
    return layers


def inner_weights(
    found: FinishedRun, statistic: str = "W1_norm", layer: str | None = None, arms: Sequence[str] | None = None
) -> Picture:
    """One statistic of one layer by training step, a line for each arm. layer: the topmost where None."""
    if statistic not in STATISTICS:
        raise ValueError(f"statistic is {statistic!r}; it is one of {', '.join(STATISTICS)}")
    layers = monitored_layers(found)
    shown = layer or layers[-1]
    if shown not in layers:
        raise ValueError(f"layer is {shown!r}; the monitor looked at {', '.join(layers)}")
    rows: Table = chosen(found.history(f"ttt/{shown}/{statistic}"), "arm", arms)
    figure, axes = panel("training step", STATISTICS[statistic])
    draw_lines(axes, over_seeds(rows, ["arm", "step"]), "arm", "step")
    if (rows["value"] > 0).all() and rows["value"].max() > 20 * rows["value"].min():
        axes.set_yscale("log")
    if statistic == "W1_max":
        mark(axes, "said to be the limit of health", y=HEALTHY_W1)
    title = f"{STATISTICS[statistic].capitalize()} in {shown} while training ({found.recipe})"
    return Picture(title=title, caption=found.caption, figure=with_legend(figure, axes))
