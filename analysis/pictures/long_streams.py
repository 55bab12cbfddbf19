"""long-generation: what a stream of a model's own speech takes, and how good it is, minute by minute."""

from __future__ import annotations

from collections.abc import Sequence

from analysis.pictures.drawing import Picture, draw_lines, panel, with_legend
from analysis.pictures.finished import FinishedRun, NothingToShowError, chosen

SHOWN = {
    "held_bytes": ("bytes held by the stream", "What a stream of a model's own speech holds"),
    "resident_bytes": ("bytes of the whole process", "Memory of the process that speaks"),
    "real_time_factor": ("seconds of compute a second", "What a second of speech takes"),
    "cross_entropy_nats": ("nats a symbol under real speech's model", "How surprising the speech is"),
    "share_of_streams_after_first_alarm": ("share of streams", "How many streams have raised the alarm of gibberish"),
}
LOGARITHMIC = {"held_bytes", "resident_bytes"}


def along(found: FinishedRun, measure: str, arms: Sequence[str] | None = None) -> Picture:
    """One measure of `along.csv`, a line for each arm; streams that last longer reach further to the right."""
    if measure not in SHOWN:
        raise ValueError(f"measure is {measure!r}; it is one of {', '.join(SHOWN)}")
    table = found.csv("along.csv", "arm", "end_s", "measure", "value")
    rows = chosen(table[table["measure"] == measure], "arm", arms).copy()
    if rows.empty:
        raise NothingToShowError(f"along.csv of {found.caption} has no {measure}")
    rows["minutes"] = rows["end_s"] / 60
    rows["low"] = rows["high"] = float("nan")
    label, title = SHOWN[measure]
    figure, axes = panel("minutes of the conversation", label)
    draw_lines(axes, rows, "arm", "minutes")
    if measure in LOGARITHMIC:
        axes.set_yscale("log")
    elif measure == "share_of_streams_after_first_alarm":
        axes.set_ylim(-0.03, 1.03)
    if rows["minutes"].max() > 4 * rows.groupby("arm")["minutes"].max().min():
        axes.set_xscale("log")
    return Picture(title=title, caption=found.caption, figure=with_legend(figure, axes))
