"""How every picture is drawn: one narrow panel, colours that everybody can tell apart, bands that are intervals."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from analysis.tables import Table

WIDTH_INCHES, HEIGHT_INCHES = 4.6, 3.6
"""Shown 390 pixels wide, the letters of such a figure are still about 10 pixels high."""
LEGEND_ROW_INCHES, BAR_ROW_INCHES = 0.21, 0.3
RESOLUTION_DOTS_PER_INCH = 144
LARGE = 10_000
"""From here on ticks are written with k, M and G."""
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")
STYLES = ("-", "--", ":", "-.")


@dataclass(frozen=True, kw_only=True, eq=False)
class Picture:
    """A figure with what it shows, in a sentence, and of which runs. Jupyter shows all three."""

    title: str
    caption: str
    figure: Figure

    def png(self) -> bytes:
        written = io.BytesIO()
        # Nothing of the day or the machine goes into the file: the same runs give the same bytes.
        self.figure.savefig(written, format="png", dpi=RESOLUTION_DOTS_PER_INCH, metadata={"Software": None})
        return written.getvalue()

    def data_uri(self) -> str:
        return f"data:image/png;base64,{base64.b64encode(self.png()).decode()}"

    def _repr_html_(self) -> str:
        width = round(self.figure.get_figwidth() * 96)
        return (
            f"<figure><figcaption><b>{html.escape(self.title)}</b></figcaption>"
            f'<img src="{self.data_uri()}" alt="{html.escape(self.title)}" style="max-width:100%;width:{width}px">'
            f"<figcaption><small>{html.escape(self.caption)}</small></figcaption></figure>"
        )


def panel(xlabel: str, ylabel: str, height: float = HEIGHT_INCHES) -> tuple[Figure, Axes]:
    """An empty panel. height: in inches, without the legend."""
    figure = Figure(figsize=(WIDTH_INCHES, height), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def draw_lines(axes: Axes, table: Table, label: str, x: str) -> None:
    """One line for every value of the column `label`, with its interval as a band where it has one.

    table: columns `label`, `x`, value, low, high; as `over_seeds` gives it.
    """
    for number, (name, rows) in enumerate(table.groupby(label, sort=False)):
        rows = rows.sort_values(x)
        places = rows[x].to_numpy(dtype=float)
        [line] = axes.plot(
            places, rows["value"].to_numpy(dtype=float), label=str(name), marker="o", markersize=2.5, linewidth=1.4,
            **appearance(number),
        )  # fmt: skip
        low, high = rows["low"].to_numpy(dtype=float), rows["high"].to_numpy(dtype=float)
        if numpy.isfinite(low).any():
            axes.fill_between(places, low, high, color=line.get_color(), alpha=0.13, linewidth=0)


def draw_points(axes: Axes, table: Table, label: str) -> None:
    """A row for every line of the table, the first on top: a point with its interval.

    table: columns `label`, value, low, high; ends NaN where there is no interval.
    """
    value = table["value"].to_numpy(dtype=float)
    # Means of shares are rounded: an end may lie 1e-17 on the wrong side of its value.
    ends = numpy.abs(numpy.nan_to_num(numpy.vstack([value - table["low"], table["high"] - value])))
    axes.errorbar(
        value, range(len(table)), xerr=ends, fmt="o", markersize=4, capsize=2.5, linewidth=1.2, color=COLOURS[0]
    )  # fmt: skip
    axes.set_yticks(range(len(table)), [str(name) for name in table[label]])
    axes.set_ylim(len(table) - 0.4, -0.6)
    axes.locator_params(axis="x", nbins=5)
    if numpy.nanmax(numpy.abs(value)) >= LARGE:
        axes.xaxis.set_major_formatter(EngFormatter())
    beside_long_names(axes)


def beside_long_names(axes: Axes) -> None:
    """Lets the label below start from the right: names of rows leave it less room than its words need."""
    axes.set_xlabel(axes.get_xlabel(), loc="right")


def rows_height(rows: int) -> float:
    """Inches for a panel of so many rows of points or bars."""
    return 1.1 + BAR_ROW_INCHES * max(rows, 3)


def appearance(number: int) -> dict[str, Any]:
    """Colour and style of a picture's line of this number: styles change when the colours are used up."""
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": STYLES[number // len(COLOURS) % len(STYLES)]}


def mark(axes: Axes, label: str, *, x: float | None = None, y: float | None = None) -> None:
    """A thin line where something is known beforehand: guessing, the trained length, a margin."""
    style: Mapping[str, Any] = {"color": "dimgrey", "linestyle": (0, (4, 3)), "linewidth": 0.9, "label": label}
    if x is not None:
        axes.axvline(x, **style)
    if y is not None:
        axes.axhline(y, **style)


def with_legend(figure: Figure, axes: Axes) -> Figure:
    """The legend below the panel, which grows by what the legend takes."""
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        columns = 2 if max(map(len, labels)) <= 26 and len(labels) > 1 else 1
        rows = -(-len(labels) // columns)
        figure.set_figheight(figure.get_figheight() + LEGEND_ROW_INCHES * rows)
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize="small", frameon=False)
    return figure


def middle(table: Table, first: str = "first", end: str = "end") -> Table:
    """Where a bucket is drawn on a logarithmic axis: halfway between its edges there (the first from 1 on)."""
    return (table[first].clip(lower=1) * table[end].clip(lower=1)) ** 0.5
