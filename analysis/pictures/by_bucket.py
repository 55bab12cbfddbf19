"""Losses by position and recall by distance, a line for each arm or view."""

from __future__ import annotations

from collections.abc import Sequence

import pandas

from analysis.pictures.drawing import Picture, draw_lines, draw_points, mark, middle, panel, rows_height, with_legend
from analysis.pictures.finished import FinishedRun, chosen, over_seeds
from analysis.tables import Table

LOSS, RECALL = "nats per text token", "share of asked facts recalled"
CHANCE = "recall/chance"


def by_bucket(
    found: FinishedRun, section: str, title: str, xlabel: str, ylabel: str, arms: Sequence[str] | None = None
) -> Picture:
    """Metrics `SECTION/first_end` of every arm against their buckets, on a logarithmic axis; recall beside guessing."""
    table = chosen(found.bucketed(section), "arm", arms)
    means = over_seeds(table, ["arm", "first", "end"])
    means["middle"] = middle(means)
    figure, axes = panel(xlabel, ylabel)
    draw_lines(axes, means, "arm", "middle")
    axes.set_xscale("log", base=2)
    if section.startswith(("recall", "near_recall", "onset_near_recall")):
        chances = {run.metrics[CHANCE] for run in found.arms if CHANCE in run.metrics}
        for chance in sorted(chances):
            mark(axes, "guessing", y=chance)
        axes.set_ylim(-0.03, 1.03)
    return Picture(title=title, caption=found.caption, figure=with_legend(figure, axes))


def loss_by_position(found: FinishedRun, arms: Sequence[str] | None = None) -> Picture:
    """Held-out loss of every arm by the position in the conversation."""
    title = "What the text costs, the further a conversation has come"
    return by_bucket(found, "loss_by_position", title, "position in the conversation", LOSS, arms)


def recall_by_distance(found: FinishedRun, arms: Sequence[str] | None = None) -> Picture:
    """Share of asked facts recalled, by how long ago they were said."""
    title = "What is still known, the longer ago it was said"
    return by_bucket(found, "recall_by_distance", title, "positions since the fact was last said", RECALL, arms)


def loss_by_seconds(found: FinishedRun, arms: Sequence[str] | None = None) -> Picture:
    """The loss by time of speech, in which backbones of different frame rates can be laid side by side."""
    title = f"{found.recipe}: what the text costs, by time of speech"
    return by_bucket(found, "loss_by_time_seconds", title, "seconds into the conversation", LOSS, arms)


def recall_by_seconds(found: FinishedRun, arms: Sequence[str] | None = None) -> Picture:
    """Recall by time of speech, in which backbones of different frame rates can be laid side by side."""
    title = f"{found.recipe}: what is still known, by time of speech"
    return by_bucket(
        found, "recall_by_distance_seconds", title, "seconds since the fact was last said", RECALL, arms
    )  # fmt: skip


def learning_curves(found: FinishedRun, arms: Sequence[str] | None = None) -> Picture:
    """Held-out loss by training step."""
    table = chosen(found.history("validation/text_loss_nats_per_token"), "arm", arms)
    figure, axes = panel("training step", LOSS)
    draw_lines(axes, over_seeds(table, ["arm", "step"]), "arm", "step")
    title = f"{found.recipe}: held-out loss while training"
    return Picture(title=title, caption=found.caption, figure=with_legend(figure, axes))


def one_number(found: FinishedRun, metric: str, title: str, xlabel: str, arms: Sequence[str] | None = None) -> Picture:
    """One logged number of every arm, with its interval over seeds."""
    means = over_seeds(chosen(found.metric(metric), "arm", arms), ["arm"])
    figure, axes = panel(xlabel, "", rows_height(len(means)))
    draw_points(axes, means, "arm")
    return Picture(title=title, caption=found.caption, figure=figure)


def arms_table(found: FinishedRun, metrics: Sequence[str]) -> Table:
    """A row for every arm: the mean over seeds of each of the given metrics; NaN where an arm has not logged it."""
    rows = {run.arm: {} for run in found.arms}
    for name in metrics:
        if any(name in run.metrics for run in found.arms):
            for _, row in over_seeds(found.metric(name), ["arm"]).iterrows():
                rows[row["arm"]][name] = row["value"]
    return pandas.DataFrame.from_dict(rows, orient="index", columns=list(metrics)).rename_axis("arm")
