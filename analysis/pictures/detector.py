"""gibberish-detector: its ROC, one stream as it breaks, and what each kind of damage is told by."""

from __future__ import annotations

from collections.abc import Sequence

from analysis.pictures.drawing import Picture, draw_lines, draw_points, mark, panel, rows_height, with_legend
from analysis.pictures.finished import FinishedRun, NothingToShowError, chosen
from analysis.tables import Table

SMALLEST_DRAWN = 1e-3
"""A false positive rate of 0 is drawn here, and so is a distance of 0: both axes are logarithmic."""
SHOWN_EXAMPLES = ("shuffled", "loop-4s", "silence", "reversed")


def roc(found: FinishedRun, view: str) -> Picture:
    """The share of gibberish windows told by that of clean windows told too, a line for each kind of damage."""
    rows = _of_view(found, "roc.csv", view, "false_positive_rate", "true_positive_rate")
    lines = rows.rename(columns={"true_positive_rate": "value"})
    lines["low"] = lines["high"] = float("nan")
    lines["rate"] = lines["false_positive_rate"].clip(lower=SMALLEST_DRAWN)
    figure, axes = panel("share of clean windows above the threshold", "share of gibberish windows above it")
    draw_lines(axes, lines, "kind", "rate")
    axes.set_xscale("log")
    axes.set_ylim(-0.03, 1.03)
    title = f"What the detector tells from clean {view}, single windows"
    return Picture(title=title, caption=found.caption, figure=with_legend(figure, axes))


def area_by_kind(found: FinishedRun, view: str) -> Picture:
    """The area under the ROC of each kind of damage, with its interval over seeds."""
    rows = _of_view(found, "kinds.csv", view, "kind", "auc", "auc_low", "auc_high")
    table = rows.rename(columns={"auc": "value", "auc_low": "low", "auc_high": "high"})
    figure, axes = panel("area under the ROC, single windows", "", rows_height(len(table)))
    draw_points(axes, table, "kind")
    mark(axes, "guessing", x=0.5)
    title = f"How well each kind of damage is told from clean {view}"
    return Picture(title=title, caption=found.caption, figure=with_legend(figure, axes))


def example_stream(found: FinishedRun, view: str, kinds: Sequence[str] = SHOWN_EXAMPLES) -> Picture:
    """One held-out stream: how far its windows are from speech, before and after the damage."""
    rows = _of_view(found, "examples.csv", view, "kind", "onset_s", "threshold", "end_s", "deviation")
    lines = chosen(rows, "kind", kinds).rename(columns={"deviation": "value"})
    lines["value"] = lines["value"].clip(lower=SMALLEST_DRAWN)
    lines["low"] = lines["high"] = float("nan")
    figure, axes = panel("seconds of the stream", "distance from speech (1: a measure's limit)")
    draw_lines(axes, lines, "kind", "end_s")
    axes.set_yscale("log")
    mark(axes, "threshold", y=float(lines["threshold"].iloc[0]))
    mark(axes, "planted onset", x=float(lines["onset_s"].iloc[0]))
    title = f"One stream of {view} as it breaks"
    return Picture(title=title, caption=found.caption, figure=with_legend(figure, axes))


def _of_view(found: FinishedRun, file: str, view: str, *columns: str) -> Table:
    table = found.csv(file, "view", *columns)
    rows = table[table["view"] == view].copy()
    if rows.empty:
        raise NothingToShowError(
            f"{file} of {found.caption} has no view {view}; it has {', '.join(dict.fromkeys(table['view']))}"
        )
    return rows
