"""memory: what one conversation holds, arrangement by arrangement."""

from __future__ import annotations

import numpy
import pandas

from analysis.pictures.drawing import COLOURS, Picture, beside_long_names, mark, panel, rows_height, with_legend
from analysis.pictures.finished import FinishedRun, NothingToShowError
from analysis.tables import Table

GIGABYTE = 1e9
AFTER_ONE_HOUR, BOUNDED = "memory/bytes_after_1_hour", "memory/is_bounded"


def arrangements(found: FinishedRun) -> Table:
    """arm, backbone, layout, gigabytes (10^9 bytes after one hour of speech), is_bounded."""
    table = found.csv("memory.csv", AFTER_ONE_HOUR, BOUNDED).dropna(subset=[AFTER_ONE_HOUR])
    return pandas.DataFrame({
        "arm": table["arm"], "backbone": table["backbone"], "layout": table["layout"],
        "gigabytes": table[AFTER_ONE_HOUR] / GIGABYTE, "is_bounded": table[BOUNDED] == 1.0,
    })  # fmt: skip


def memory_bars(found: FinishedRun, backbone: str) -> Picture:
    """What one conversation holds after an hour of speech, for every arrangement of one backbone."""
    table = arrangements(found)
    rows = table[table["backbone"] == backbone]
    if rows.empty:
        raise NothingToShowError(
            f"{found.caption} has no backbone {backbone}; it has {', '.join(dict.fromkeys(table['backbone']))}"
        )
    rows = rows.sort_values("gigabytes")
    figure, axes = panel("GB (10^9 bytes) after one hour of speech", "", rows_height(len(rows)))
    least = rows["gigabytes"].min() / 2
    for number, (is_bounded, label) in enumerate(((True, "never grows further"), (False, "grows with every minute"))):
        own = (rows["is_bounded"] == is_bounded).to_numpy()
        if own.any():
            places, sizes = numpy.flatnonzero(own), rows["gigabytes"].to_numpy()[own]
            axes.barh(places, sizes - least, left=least, color=COLOURS[number], label=label, height=0.6)
    for place, size in enumerate(rows["gigabytes"]):
        axes.annotate(f" {size:.2g}", (size, place), va="center", fontsize="small")
    axes.set_xscale("log")
    beside_long_names(axes)
    axes.set_xlim(least, rows["gigabytes"].max() * 3)
    axes.set_yticks(range(len(rows)), list(rows["layout"]))
    if rows["gigabytes"].max() * 3 > 80:
        mark(axes, "an 80 GB GPU", x=80)
    title = f"What an hour of conversation holds: {backbone}"
    return Picture(title=title, caption=found.caption, figure=with_legend(figure, axes))


def backbones_of(found: FinishedRun) -> list[str]:
    """Backbones that were computed, in their order."""
    return list(dict.fromkeys(arrangements(found)["backbone"]))
