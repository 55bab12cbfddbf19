"""One table of all stages: loss by position, recall by distance, memory, speed and wall time, stage by stage."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.curriculum.chain import ChainExperiment, Link
from experiments.curriculum.figures import draw_stages
from experiments.curriculum.metric_names import SECONDS
from experiments.harness import metric_names as names
from experiments.harness import tracking
from experiments.harness.study import FinishedArm, Report
from experiments.harness.text_table import aligned, human_bytes

UNMEASURED = "-"


@dataclass(frozen=True, kw_only=True)
class StageRow:
    """What is known of one link and seed. measured: by name, at the end of the link, on the conversations of the last.

    A link whose own conversations are shorter is read on those by the link that starts from it, before its first step:
    those values stand here, and not the ones on its own.
    """

    link: str
    seed: int
    status: str
    seconds: float
    measured: Mapping[str, float]
    own: Mapping[str, float]


def report_chain(config: ChainExperiment, folder: Path, uri: str, finished: Sequence[FinishedArm]) -> Report:
    """The table, as text and as CSV, and a figure of loss by position."""
    rows = stage_rows(config, uri, finished)
    last = config.links[-1].experiment.evaluation
    table = stage_table(rows, last.position_edges, last.distance_edges)
    path = folder / "stages.csv"
    _write_csv(path, rows)
    figures = draw_stages(folder / "figures", rows, last.position_edges, last.distance_edges)
    chance = sorted({row.own[names.RECALL_CHANCE] for row in rows if names.RECALL_CHANCE in row.own})
    lines = [f"recall by guessing: {', '.join(f'{value:.3f}' for value in chance)}"] if chance else []
    return Report(table="\n".join([table, *lines]), figures=figures, files=(path,))


def stage_rows(config: ChainExperiment, uri: str, finished: Sequence[FinishedArm]) -> list[StageRow]:
    """One row for every link and seed that was begun."""
    by_place = {(arm.name, arm.seed): arm for arm in finished}
    rows = []
    for arm in finished:
        link = config.link(arm.name)
        own = {} if arm.run is None else dict(arm.run.metrics)
        next_arm = by_place.get((_next_of(config, link), arm.seed))
        measured = own if _reads_the_longest(config, link) else _before_the_first_step(uri, next_arm)
        rows.append(
            StageRow(
                link=arm.name,
                seed=arm.seed,
                status="not run" if arm.run is None else arm.run.status.lower(),
                seconds=own.get(SECONDS, math.nan),
                measured=measured,
                own=own,
            )
        )
    return rows


def _next_of(config: ChainExperiment, link: Link) -> str:
    return next((other.name for other in config.links if other.starts_from == link.name), "")


def _reads_the_longest(config: ChainExperiment, link: Link) -> bool:
    longest = max(other.experiment.data.spec.positions for other in config.links)
    return link.experiment.data.spec.positions == longest


def _before_the_first_step(uri: str, arm: FinishedArm | None) -> dict[str, float]:
    """What an arm measured before it was trained."""
    if arm is None or arm.run is None:
        return {}
    sections = (names.LOSS_BY_POSITION, names.RECALL_BY_DISTANCE, names.VALIDATION_TEXT_LOSS, names.RECALL_ALL)
    wanted = [name for name in arm.run.metrics if name.startswith(sections)]
    histories = {name: tracking.read_history(uri, arm.run.run_id, name) for name in wanted}
    return {name: rows[0][1] for name, rows in histories.items() if rows and rows[0][0] == 0}


def stage_table(rows: Sequence[StageRow], position_edges: Sequence[int], distance_edges: Sequence[int]) -> str:
    """A line for every link and seed; `-` where nothing was measured."""
    positions, distances = names.buckets(position_edges), names.buckets(distance_edges)
    several = len({row.seed for row in rows}) > 1
    header = [
        "stage", "status", "text loss",
        *(f"loss {names.bucket_label(*bucket)}" for bucket in positions),
        *(f"recall {names.bucket_label(*bucket)}" for bucket in distances),
        "positions/s", "state bytes", "peak memory", "minutes",
    ]  # fmt: skip
    lines = [_line(row, positions, distances, several) for row in rows]
    kept = [index for index in range(len(header)) if index < 3 or any(line[index] != UNMEASURED for line in lines)]
    return aligned([[line[index] for index in kept] for line in [header, *lines]])


def _line(
    row: StageRow, positions: list[tuple[int, int]], distances: list[tuple[int, int]], several_seeds: bool
) -> list[str]:
    def shown(metrics: Mapping[str, float], name: str, form: str) -> str:
        value = metrics.get(name, math.nan)
        return format(value, form) if math.isfinite(value) else UNMEASURED

    def size(name: str) -> str:
        return human_bytes(row.own[name]) if name in row.own else UNMEASURED

    return [
        f"{row.link} seed {row.seed}" if several_seeds else row.link,
        row.status,
        shown(row.measured, names.VALIDATION_TEXT_LOSS, ".3f"),
        *(shown(row.measured, names.bucket_name(names.LOSS_BY_POSITION, *bucket), ".3f") for bucket in positions),
        *(shown(row.measured, names.bucket_name(names.RECALL_BY_DISTANCE, *bucket), ".2f") for bucket in distances),
        shown(row.own, names.SPEED, ",.0f"),
        size(names.STATE_BYTES),
        size(names.PEAK_BYTES),
        f"{row.seconds / 60:.1f}" if math.isfinite(row.seconds) else UNMEASURED,
    ]


def _write_csv(path: Path, rows: Sequence[StageRow]) -> None:
    metrics = sorted({name for row in rows for name in row.measured if not name.startswith(("system/", "ttt/"))})
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["stage", "seed", "status", "seconds", *metrics])
        for row in rows:
            values = [row.measured.get(name, "") for name in metrics]
            writer.writerow([row.link, row.seed, row.status, row.seconds, *values])
