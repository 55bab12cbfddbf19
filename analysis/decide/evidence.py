"""Measurements from evidence/tests.csv, and which model each is about."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from analysis.cards import Card
from analysis.runs import SCALES

ROOT = Path(__file__).parents[2]
EVIDENCE = ROOT / "evidence" / "tests.csv"
REQUIRED_COLUMNS = ("claim", "recipe", "scale", "metric", "value", "low", "high")


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One test of a claim. low, high: its interval. against: what is taken off the value, "" where nothing is."""

    claim: str
    recipe: str
    scale: str
    metric: str
    value: float
    low: float
    high: float
    arm: str = ""
    against: str = ""
    unit: str = ""
    run_id: str = ""

    def __str__(self) -> str:
        interval = "" if self.low == self.high else f" [{self.low:.4g}, {self.high:.4g}]"
        what = (
            self.metric + (f" of {self.arm}" if self.arm else "") + (f" minus {self.against}" if self.against else "")
        )
        number = f"{self.value:.4g}{interval} {self.unit}".rstrip()
        run = f"run {self.run_id}" if self.run_id else "no run named"
        return f"{self.claim}: {what} = {number} ({self.recipe} at scale {self.scale}, {run})"


def read_evidence(path: Path = EVIDENCE) -> tuple[Measurement, ...]:
    """Every measured test; none where there is no such file.

    Raises ValueError, with the file, for missing columns, a scale that does not exist, and a value that is no number.
    """
    if not path.is_file():
        return ()
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or ()
        if missing := [name for name in REQUIRED_COLUMNS if name not in columns]:
            raise ValueError(f"{path} lacks the columns {', '.join(missing)}; run make findings, which writes it")
        return tuple(_measurement(row, path.name) for row in reader)


def about(card: Card, evidence: tuple[Measurement, ...]) -> tuple[Measurement, ...]:
    """Rows of the model's own recipes, and of its arms in recipes that several models share; largest scale first."""
    mine = [row for row in evidence if row.recipe in card.recipes or _names_an_arm(row, card.arms)]
    return tuple(sorted(mine, key=lambda row: -SCALES.index(row.scale)))


def _names_an_arm(row: Measurement, prefix: str) -> bool:
    return any(word.startswith(prefix) for word in re.split(r"[/\s,]", f"{row.metric} {row.arm} {row.against}"))


def _measurement(row: Mapping[str, str], origin: str) -> Measurement:
    if row["scale"] not in SCALES:
        raise ValueError(f"{origin}: scale {row['scale']!r} of {row['metric']}; there are {', '.join(SCALES)}")
    # A number may be a difference to another arm, or to another metric of the same run.
    against = row.get("against") or row.get("minus") or ""
    return Measurement(
        claim=row["claim"], recipe=row["recipe"], scale=row["scale"], metric=row["metric"], arm=row.get("arm") or "",
        against=against, unit=row.get("unit") or "", run_id=row.get("run_id") or "",
        value=_number(row, "value", origin), low=_number(row, "low", origin), high=_number(row, "high", origin),
    )  # fmt: skip


def _number(row: Mapping[str, str], name: str, origin: str) -> float:
    try:
        return float(row[name])
    except ValueError as error:
        raise ValueError(f"{origin}: {name} of {row['metric']} is no number: {row[name]!r}") from error
