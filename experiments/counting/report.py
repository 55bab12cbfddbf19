"""The tables at the end, made of what the store has logged; `-` where a model's value is unknown or there is none."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.counting import arms as names
from experiments.harness.text_table import aligned

BILLION = 1e9


@dataclass(frozen=True, kw_only=True)
class ArmRow:
    """One arm as it ended. metrics: empty where it never came to log any."""

    arm: str
    status: str
    metrics: Mapping[str, float]


def adapter_table(rows: Sequence[ArmRow]) -> str:
    """One line an adapter: its whole folder, and the files without which it could not mount TTT."""
    header = [
        "adapter", "status", "files", "lines", "code lines", "importing ttt_core: files", "lines", "code lines",
    ]  # fmt: skip
    metrics = [
        f"{reading}_{what}" for reading in (names.WHOLE_FOLDER, names.IMPORTS_TTT_CORE) for what in names.COUNTED
    ]
    return aligned(
        [header, *([row.arm, row.status, *(_cell(row, each, "{:,.0f}") for each in metrics)] for row in rows)]
    )


def model_table(rows: Sequence[ArmRow]) -> str:
    """One line a model: billions of parameters, rates and context."""
    header = [
        "model", "status", "language model B", "all known B", "unknown parts", "published B", "positions/s heard",
        "said", "context", "facts checked",
    ]  # fmt: skip
    columns = (
        (names.LANGUAGE_MODEL_PARAMETERS, "{:.3f}", BILLION),
        (names.KNOWN_PARAMETERS, "{:.3f}", BILLION),
        (names.UNKNOWN_PARTS, "{:.0f}", 1),
        (names.FACTS["published_parameters"], "{:.3f}", BILLION),
        (names.FACTS["heard_positions_hz"], "{:.4g}", 1),
        (names.FACTS["said_positions_hz"], "{:.4g}", 1),
        (names.FACTS["context_positions"], "{:,.0f}", 1),
        (names.FACTS_CHECKED, "{:.0f}", 1),
    )
    lines = [[row.arm, row.status, *(_cell(row, name, form, unit) for name, form, unit in columns)] for row in rows]
    return aligned([header, *lines])


def write_rows(path: Path, rows: Sequence[ArmRow]) -> Path:
    """Every logged number of every arm, one line an arm."""
    columns = list(dict.fromkeys(name for row in rows for name in row.metrics))
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["arm", "status", *columns])
        writer.writerows([row.arm, row.status, *(row.metrics.get(name, "") for name in columns)] for row in rows)
    return path


def _cell(row: ArmRow, metric: str, form: str, unit: float = 1) -> str:
    return form.format(row.metrics[metric] / unit) if metric in row.metrics else "-"
