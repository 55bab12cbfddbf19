"""Measurements from evidence/*.csv, and which model each is about."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from analysis.cards import Card

ROOT = Path(__file__).parents[2]
EVIDENCE = ROOT / "evidence"
SCALES = ("smoke", "cpu", "gpu", "full")
REQUIRED_COLUMNS = ("claim", "recipe", "scale", "metric", "value")


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One row. low, high: its interval, both the value where none is given. run: "" where no run is named."""

    claim: str
    test: str
    recipe: str
    scale: str
    metric: str
    value: float
    low: float
    high: float
    run: str
    origin: str

    def __str__(self) -> str:
        interval = "" if self.low == self.high else f" [{self.low:.4g}, {self.high:.4g}]"
        where = f"run {self.run}" if self.run else self.origin
        return (
            f"{self.claim}: {self.metric} = {self.value:.4g}{interval} ({self.recipe} at scale {self.scale}, {where})"
        )


def read_evidence(folder: Path = EVIDENCE) -> tuple[Measurement, ...]:
    """Every measured row; none where there is no such folder. Rows of single seeds and without a value are left out.

    Raises ValueError, with the file, for missing columns, a scale that does not exist, and a value that is no number.
    """
    found: list[Measurement] = []
    for path in sorted(folder.glob("*.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or ()
            if missing := [name for name in REQUIRED_COLUMNS if name not in columns]:
                raise ValueError(f"{path} lacks the columns {', '.join(missing)}; `make findings` writes it")
            rows = [row for row in reader if row["value"] and not row.get("seed")]
            found += [_measurement(row, path.name) for row in rows]
    return tuple(found)


def about(card: Card, evidence: tuple[Measurement, ...]) -> tuple[Measurement, ...]:
    """Rows of the model's own recipes, and of its arms in recipes that several models share; largest scale first."""
    mine = [row for row in evidence if row.recipe in card.recipes or _names_an_arm(row, card.arms)]
    return tuple(sorted(mine, key=lambda row: -SCALES.index(row.scale)))


def _names_an_arm(row: Measurement, prefix: str) -> bool:
    return any(word.startswith(prefix) for word in re.split(r"[/\s,]", f"{row.metric} {row.test}"))


def _measurement(row: Mapping[str, str], origin: str) -> Measurement:
    if row["scale"] not in SCALES:
        raise ValueError(f"{origin}: scale {row['scale']!r} of {row['metric']}; there are {', '.join(SCALES)}")
    value = _number(row, "value", origin)
    runs = [text for name, text in row.items() if name.startswith("run") and text]
    return Measurement(
        claim=row["claim"], test=row.get("test") or "", recipe=row["recipe"], scale=row["scale"], metric=row["metric"],
        value=value, low=_number(row, "low", origin, value), high=_number(row, "high", origin, value),
        run=runs[0] if runs else "", origin=origin,
    )  # fmt: skip


def _number(row: Mapping[str, str], name: str, origin: str, otherwise: float | None = None) -> float:
    text = row.get(name) or ""
    if not text and otherwise is not None:
        return otherwise
    try:
        return float(text)
    except ValueError as error:
        raise ValueError(f"{origin}: {name} of {row['metric']} is no number: {text!r}") from error
