"""gibberish, endless-stream, rope-reset, mini-batch-leak: what happens along streams, and against controls."""

from __future__ import annotations

from collections.abc import Sequence

import pandas

from analysis.pictures.drawing import Picture, draw_lines, draw_points, mark, middle, panel, rows_height, with_legend
from analysis.pictures.finished import FinishedRun, NothingToShowError, chosen, over_seeds

CURVES = {
    "word_loss_nats": "nats per word",
    "word_excess_nats": "nats per word above the grammar's own",
    "recall": "share of asked facts recalled",
    "inner_norm": "norm of the inner weights",
    "effective_step": "one commit's step, as a share of the norm",
    "largest_weight": "largest inner weight",
}
LOGARITHMIC = ("inner_norm", "effective_step", "largest_weight")
TITLES = {
    "word_loss_nats": "Words along the stream",
    "word_excess_nats": "Words along the stream",
    "recall": "Memory along the stream: facts younger than the trained length",
    "inner_norm": "The inner weights grow, or do not",
    "effective_step": "How much a commit still moves",
    "largest_weight": "The largest inner weight",
}


def views(found: FinishedRun) -> list[str]:
    """Names of the views that curves were written of."""
    return list(dict.fromkeys(found.csv("curves.csv")["view"]))


def along_stream(found: FinishedRun, curve: str, views: Sequence[str] | None = None) -> Picture:
    """One curve of `curves.csv` by position, a line for each view; bands are over seeds."""
    if curve not in CURVES:
        raise ValueError(f"curve is {curve!r}; it is one of {', '.join(CURVES)}")
    table = found.csv("curves.csv", "view", "curve", "value")
    rows = table[table["curve"] == curve].dropna(subset=["value"])
    if rows.empty:
        raise NothingToShowError(
            f"curves.csv of {found.caption} has no {curve}; it has {', '.join(dict.fromkeys(table['curve']))}"
        )
    means = over_seeds(chosen(rows, "view", views), ["view", "first_position", "end_position"])
    means["middle"] = middle(means, "first_position", "end_position")
    figure, axes = panel("position in the stream", CURVES[curve])
    draw_lines(axes, means, "view", "middle")
    axes.set_xscale("log", base=2)
    if curve in LOGARITHMIC:
        axes.set_yscale("log")
    if curve == "recall":
        axes.set_ylim(-0.03, 1.03)
        mark(axes, "guessing", y=1 / found.config["stream"]["values"])
    trained = max(stage["positions"] for stage in found.config["training"]["stages"])
    mark(axes, "trained length", x=trained)
    title = f"{TITLES[curve]} ({found.recipe})"
    return Picture(title=title, caption=found.caption, figure=with_legend(figure, axes))


def differences(
    found: FinishedRun, start: str, end: str, title: str, xlabel: str, names: Sequence[str] | None = None
) -> Picture:
    """Metrics `START<name>END` of the experiment's own run, each with its interval over seeds, beside 0."""
    metrics = found.run.parent.metrics
    rows = [
        (name[len(start) : -len(end)], value, metrics.get(f"{name}_low"), metrics.get(f"{name}_high"))
        for name, value in sorted(metrics.items())
        if name.startswith(start) and name.endswith(end)
    ]
    if not rows:
        raise NothingToShowError(f"{found.caption} has logged no {start}...{end}")
    table = pandas.DataFrame(rows, columns=["name", "value", "low", "high"])
    table = chosen(table.astype({"value": float, "low": float, "high": float}), "name", names)
    figure, axes = panel(xlabel, "", rows_height(len(table)))
    draw_points(axes, table, "name")
    mark(axes, "no difference", x=0)
    return Picture(title=title, caption=found.caption, figure=with_legend(figure, axes))


def suspects(found: FinishedRun, measured: str = "word_loss") -> Picture:
    """gibberish: what each suspect adds to the sound view of the same streams. measured: "word_loss" or "recall"."""
    units = {"word_loss": "nats per word above the sound view's", "recall": "recall above the sound view's"}
    if measured not in units:
        raise ValueError(f"measured is {measured!r}; it is one of {', '.join(units)}")
    title = f"What each suspect does to an old stream: {measured.replace('_', ' ')}"
    names = [name for name in views(found) if f"gibberish_{name}/{measured}_against_sound" in found.run.parent.metrics]
    return differences(found, "gibberish_", f"/{measured}_against_sound", title, units[measured], names)


def cures(found: FinishedRun) -> Picture:
    """endless-stream: old recall of every view against its control on the same streams and weights."""
    title = "Old recall of each treatment, against its control on the same weights"
    return differences(
        found, "endless_", "/recall_against_control_old", title, "recall above the control's, old stream"
    )  # fmt: skip


def decoding_gap(found: FinishedRun) -> Picture:
    """mini-batch-leak: what each arm loses when it decodes token by token instead of reading all at once."""
    title = "What is lost as soon as the model decodes one token at a time"
    return differences(
        found, "leak_", "/streamed_minus_parallel_nats", title, "nats per token, streamed minus all at once"
    )  # fmt: skip
