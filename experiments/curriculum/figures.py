"""Two pictures of a chain: loss along the conversation and recall by distance, a line for every link and seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from experiments.harness import metric_names as names

if TYPE_CHECKING:
    from experiments.curriculum.report import StageRow

RESOLUTION_DOTS_PER_INCH = 120


def draw_stages(
    folder: Path, rows: Sequence[StageRow], position_edges: Sequence[int], distance_edges: Sequence[int]
) -> list[Path]:
    """`loss_by_position.png` and `recall_by_distance.png`, each where something was measured; their paths."""
    pictures = (
        ("loss_by_position", names.LOSS_BY_POSITION, position_edges, "position", "nats per text token"),
        (
            "recall_by_distance", names.RECALL_BY_DISTANCE, distance_edges, "positions since the last mention",
            "share recalled exactly",
        ),
    )  # fmt: skip
    written = []
    for file, section, edges, x_label, y_label in pictures:
        figure = Figure(figsize=(7, 4.2), layout="constrained")
        axes = figure.subplots()
        buckets = names.buckets(edges)
        for row in rows:
            values = [row.measured.get(names.bucket_name(section, *bucket), math.nan) for bucket in buckets]
            known = [(place, value) for place, value in enumerate(values) if math.isfinite(value)]
            if known:
                axes.plot(*zip(*known, strict=True), marker="o", label=f"{row.link}, seed {row.seed}")
        if not axes.lines:
            continue
        axes.set_xticks(range(len(buckets)), [names.bucket_label(*bucket) for bucket in buckets])
        axes.set(xlabel=x_label, ylabel=y_label, title="After each stage, on the same conversations")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / f"{file}.png", dpi=RESOLUTION_DOTS_PER_INCH)
        written.append(folder / f"{file}.png")
    return written
