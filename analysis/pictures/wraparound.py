"""kv-wraparound: what a ring's wrap does to loss and recall, and which explanation the signatures fit."""

from __future__ import annotations

from collections.abc import Sequence

from analysis.pictures.by_bucket import by_bucket
from analysis.pictures.drawing import Picture, draw_points, mark, panel, rows_height, with_legend
from analysis.pictures.finished import FinishedRun, NothingToShowError

VIEWS = ("ring", "sinks", "recomputed", "full", "ttt")
LENGTHS = {"inside": "trained on no more than the ring holds", "past": "trained past the ring's wrap"}


def loss_around_wrap(found: FinishedRun, length: str = "inside", views: Sequence[str] = VIEWS) -> Picture:
    """Loss above the grammar's own, before and after the ring wraps. length: of training, "inside" or "past"."""
    picture = by_bucket(
        found, "onset_excess_loss_by_position", f"Loss before and after the wrap, {_of_length(length)}",
        "position in the stream", "nats per word above the grammar's own", [f"{view}-{length}" for view in views],
    )  # fmt: skip
    [axes] = picture.figure.axes
    mark(axes, "the ring wraps", x=found.config["model"]["context"])
    return picture


def recall_beyond_ring(found: FinishedRun, length: str = "past", views: Sequence[str] = VIEWS) -> Picture:
    """Recall by distance in long streams. length: of training, "inside" or "past"."""
    picture = by_bucket(
        found, "recall_by_distance", f"Recall inside and beyond the ring, {_of_length(length)}",
        "positions since the fact was last said", "share of asked facts recalled",
        [f"{view}-{length}" for view in views],
    )  # fmt: skip
    [axes] = picture.figure.axes
    mark(axes, "what the ring holds", x=found.config["model"]["context"])
    return picture


def signatures(found: FinishedRun, length: str = "inside", symptom: str = "known text") -> Picture:
    """In what share of the seeds each sign of the protocol was seen, with exact intervals."""
    table = found.csv("signatures.csv")
    rows = table[(table["trained"] == length) & (table["symptom"] == symptom)]
    if rows.empty:
        raise NothingToShowError(f"{found.caption} saw no {symptom} of models {_of_length(length)}")
    rows = rows.assign(
        value=rows["seeds_above"] / rows["seeds"], low=rows["share_low_95"], high=rows["share_high_95"],
        sign=rows["column"].str.replace("_", " "),
    )  # fmt: skip
    figure, axes = panel("share of seeds in which it was seen", "", rows_height(len(rows)))
    draw_points(axes, rows, "sign")
    axes.set_xlim(-0.03, 1.03)
    mark(axes, "half of the seeds: an interval must lie on one side of it", x=0.5)
    title = f"Which signs a broken stream shows ({symptom}), {_of_length(length)}"
    return Picture(title=title, caption=found.caption, figure=with_legend(figure, axes))


def _of_length(length: str) -> str:
    if length not in LENGTHS:
        raise ValueError(f"length is {length!r}; it is one of {', '.join(LENGTHS)}")
    return LENGTHS[length]
