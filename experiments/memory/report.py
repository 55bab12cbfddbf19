"""The tables at the end, made of what the store has logged.

GB are 10^9 bytes, as in the claims; k is 1,024 positions.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.harness.text_table import aligned
from experiments.memory import metrics as names
from experiments.memory.claimed import ClaimRow
from experiments.memory.configuration import POSITIONS_PER_K, Arrangement, MemoryExperiment

GIGABYTE, MEGABYTE = 1e9, 1e6


@dataclass(frozen=True, kw_only=True)
class ArmRow:
    """One arm as it ended. metrics: empty where it never came to log any."""

    arrangement: Arrangement
    status: str
    metrics: Mapping[str, float]


def memory_table(rows: Sequence[ArmRow], config: MemoryExperiment) -> str:
    """One line per arm; `-` where nothing was logged, "never" where bounded memory does not fill the GPU."""
    shown = _shown_positions(config.positions)
    header = [
        "arm", "status", "bytes/position", "fixed GB",
        *(f"GB at {positions // POSITIONS_PER_K}k" for positions in shown),
        f"{config.batch_of} at {shown[-1] // POSITIONS_PER_K}k + weights GB",
        "MB/min speech", "GB after 1 h", f"hours to {config.gpu_bytes / GIGABYTE:.0f} GB", "measured/predicted",
    ]  # fmt: skip
    return aligned([header, *(_row(row, shown, config) for row in rows)])


def _shown_positions(positions: Sequence[int]) -> list[int]:
    """Enough columns to see the growth: the shortest, the middle, the longest."""
    return sorted({positions[0], positions[len(positions) // 2], positions[-1]})


def _row(row: ArmRow, shown: Sequence[int], config: MemoryExperiment) -> list[str]:
    metrics = row.metrics

    def cell(name: str, divisor: float, form: str) -> str:
        return format(metrics[name] / divisor, form) if name in metrics else "-"

    hours = names.hours_in(config.gpu_bytes)
    is_bounded = metrics.get(names.IS_BOUNDED) == 1.0
    return [
        row.arrangement.name,
        row.status,
        cell(names.BYTES_PER_POSITION, 1, ",.0f"),
        cell(names.BYTES_FIXED, GIGABYTE, ".3f"),
        *(cell(names.at_positions(positions), GIGABYTE, ".3f") for positions in shown),
        cell(names.at_positions(shown[-1], config.batch_of, with_weights=True), GIGABYTE, ".1f"),
        cell(names.BYTES_PER_MINUTE, MEGABYTE, ",.1f"),
        cell(names.BYTES_AFTER_1_HOUR, GIGABYTE, ".3f"),
        "never" if is_bounded else cell(hours, 1, ",.1f"),
        cell(names.MEASURED_OVER_PREDICTED, 1, ".6f"),
    ]


def claims_table(rows: Sequence[ClaimRow]) -> str:
    """Claimed and computed numbers side by side."""
    header = ["claim", "what", "arm", "claimed", "computed", "computed/claimed"]
    lines = []
    for row in rows:
        claimed, ratio = row.claimed, row.computed_over_claimed
        bound = "under " if claimed.is_upper_bound else ""
        lines.append(
            [
                claimed.claim,
                claimed.what,
                claimed.arm,
                f"{bound}{claimed.claimed:g} {claimed.unit}",
                f"{row.computed:,.3f} {claimed.unit}" if claimed.unit != "B" else f"{row.computed:,.0f} B",
                "-" if ratio is None else f"{ratio:.3f}",
            ]
        )
    return aligned([header, *lines])


def write_arms(path: Path, rows: Sequence[ArmRow]) -> Path:
    """Every logged number of every arm, one line an arm."""
    columns = sorted({name for row in rows for name in row.metrics})
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["arm", "backbone", "layout", "status", *columns])
        for row in rows:
            arrangement = row.arrangement
            own = [arrangement.name, arrangement.backbone, arrangement.layout, row.status]
            writer.writerow([*own, *(_plain(row.metrics[name]) if name in row.metrics else "" for name in columns)])
    return path


def write_claims(path: Path, rows: Sequence[ClaimRow]) -> Path:
    """Claimed and computed, one line a number."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["claim", "what", "arm", "metric", "is_upper_bound", "claimed", "computed", "unit"])
        for row in rows:
            claimed = row.claimed
            writer.writerow(
                [
                    claimed.claim, claimed.what, claimed.arm, claimed.metric, claimed.is_upper_bound, claimed.claimed,
                    row.computed, claimed.unit,
                ]
            )  # fmt: skip
    return path


def _plain(value: float) -> str:
    """Whole numbers as such: bytes are exact, and 1.3e+05 would not be."""
    return str(int(value)) if value == int(value) else repr(value)
