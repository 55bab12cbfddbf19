"""What the fast weights do, in training or along a stream: a CSV, a picture, and alarms that say what to try."""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ttt_core.inner_model import InnerWeights

MAX_HEALTHY_W1 = 10.0
OPEN_GATE = 1e-6
ROWS_BEFORE_TRENDS = 10
SETTLED_EXPONENT = 0.05
YOUNG_TIMES = 100

_TENSOR_NAMES = InnerWeights._fields
_STATISTICS = ("mean", "std", "max", "norm")
COLUMNS = (
    "step", "layer", *(f"{tensor}_{statistic}" for tensor in _TENSOR_NAMES for statistic in _STATISTICS),
    "update_size", "distance_from_initial", "inner_loss", "gate",
)  # fmt: skip

Row = dict[str, float | int | str | None]


@dataclass(frozen=True)
class Alarm:
    """Something a person should look at. `is_fatal` when going on can only waste time."""

    step: int
    layer: str
    kind: str
    message: str
    is_fatal: bool = False


class TTTMonitor:
    """Writes one CSV row per layer and call into `log_dir`, and keeps the alarms that the rows gave rise to.

    Statistics are over all rows and heads: mean, std, largest absolute value (`max`), and `norm`, the Frobenius norm
    of one stream's tensor averaged over streams. Opening a folder that has a CSV goes on behind its last row.

    watches: "training", where `step` counts optimiser steps; or "stream", where the outer weights stand still, `step`
    is the position in the stream, and weights that do not settle are an alarm.
    """

    def __init__(self, log_dir: str | Path, watches: Literal["training", "stream"] = "training") -> None:
        self.watches = watches
        self.log_dir = Path(log_dir)
        self.log_dir.mkdir(parents=True, exist_ok=True)
        self.csv_path = self.log_dir / "inner_weights.csv"
        self.alarms: list[Alarm] = []
        self._previous: dict[str, InnerWeights] = {}
        self._rows: dict[str, list[Row]] = defaultdict(list)
        if self.csv_path.exists():
            for row in read_rows(self.csv_path):
                self._rows[str(row["layer"])].append(row)
        else:
            self._write_all()

    def log_layer_state(
        self, layer: int | str, W1: Tensor, b1: Tensor, W2: Tensor | None = None, b2: Tensor | None = None, *,
        step: int | None = None, inner_loss: float | None = None, initial: InnerWeights | None = None,
        gate: float | None = None,
    ) -> Row:  # fmt: skip
        """Record the inner weights of one layer, with or without a leading batch axis, and give the row written.

        step: of the outer training, or position in the stream; one more than the layer's last when None. initial: the
        learned starting weights, for `distance_from_initial`. inner_loss: mean over tokens. gate: largest |tanh(alpha)|
        of a gated mount. `update_size` is the distance from the weights at the layer's previous row.
        """
        name = str(layer)
        weights = InnerWeights(W1.detach(), b1.detach(), _detached(W2), _detached(b2))
        history = self._rows[name]
        if step is None:
            step = int(history[-1]["step"] or 0) + 1 if history else 0
        row: Row = dict.fromkeys(COLUMNS)
        row |= {"step": step, "layer": name, "inner_loss": inner_loss, "gate": gate}
        for tensor_name, tensor in zip(_TENSOR_NAMES, weights, strict=True):
            if tensor is not None:
                row |= {f"{tensor_name}_{key}": value for key, value in _statistics(tensor).items()}
        previous = self._previous.get(name)
        if previous is not None and previous.W1.shape == weights.W1.shape:
            row["update_size"] = _distance(weights, previous)
        if initial is not None:
            row["distance_from_initial"] = _distance(weights, initial)
        self._previous[name] = InnerWeights.from_tensors([tensor.clone() for tensor in weights.tensors])
        history.append(row)
        with self.csv_path.open("a", newline="") as file:
            csv.DictWriter(file, COLUMNS).writerow(row)
        self.alarms += self._raise_alarms(name, row, history)
        return row

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold beside the CSV for `rewind`: the last weights of every layer, and the alarms."""
        return {
            "previous": {name: weights.tensors for name, weights in self._previous.items()},
            "alarms": [asdict(alarm) for alarm in self.alarms],
        }

    def rewind(self, step: int, state: Mapping[str, Any] | None = None) -> None:
        """Forget rows behind `step`, so that a run resumed there writes what an uninterrupted one would have.

        state: the `state_dict` of that step. Without it the next row has no `update_size`, and alarms may be repeated.
        """
        for name, rows in self._rows.items():
            self._rows[name] = [row for row in rows if int(row["step"] or 0) <= step]
        previous, alarms = ({}, []) if state is None else (state["previous"], state["alarms"])
        self._previous = {name: InnerWeights.from_tensors(tensors) for name, tensors in previous.items()}
        self.alarms = [Alarm(**alarm) for alarm in alarms]
        self._write_all()

    def plot_evolution(self, path: str | Path | None = None) -> Path:
        """Draw every layer's curves into a PNG (`inner_weights.png` in the log folder when no path is given)."""
        from matplotlib.figure import Figure

        panels = {
            "W1_max": f"largest |W1| (healthy under {MAX_HEALTHY_W1:g})",
            "W1_norm": "norm of W1",
            "distance_from_initial": "distance from the learned start",
            "inner_loss": "inner loss",
        }
        figure = Figure(figsize=(10, 6), layout="constrained")
        for axes, (column, title) in zip(figure.subplots(2, 2).flat, panels.items(), strict=True):
            for name, rows in sorted(self._rows.items()):
                points = [(row["step"], row[column]) for row in rows if row[column] is not None]
                axes.plot([x for x, _ in points], [y for _, y in points], marker=".", label=f"layer {name}")
            axes.set(title=title, xlabel="training step" if self.watches == "training" else "position in the stream")
            if axes.lines:
                axes.legend(fontsize="small")
        target = self.log_dir / "inner_weights.png" if path is None else Path(path)
        figure.savefig(target, dpi=120)
        return target

    def _write_all(self) -> None:
        rows = sorted((row for rows in self._rows.values() for row in rows), key=lambda row: int(row["step"] or 0))
        with self.csv_path.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)

    def _raise_alarms(self, name: str, row: Row, history: list[Row]) -> list[Alarm]:
        step = int(row["step"] or 0)
        found: list[Alarm] = []
        place = "step" if self.watches == "training" else "position"

        def alarm(kind: str, message: str, is_fatal: bool = False) -> None:
            raised_before = any(old.kind == kind and old.layer == name for old in self.alarms)
            if is_fatal or not raised_before:
                found.append(Alarm(step, name, kind, f"layer {name}, {place} {step}: {message}", is_fatal))

        numbers = [value for value in row.values() if isinstance(value, float)]
        if not all(math.isfinite(value) for value in numbers):
            alarm("not_finite", "the inner weights or loss are NaN or infinite; lower base_lr or the outer learning "
                  "rate, and go on from the last good checkpoint", is_fatal=True)  # fmt: skip
            return found
        largest = row["W1_max"]
        if isinstance(largest, float) and largest > MAX_HEALTHY_W1:
            alarm("large_weights", f"largest |W1| is {largest:.3g}, above {MAX_HEALTHY_W1:g}; lower base_lr (0.1)")
        exponent = growth_exponent(history) if self.watches == "stream" else None
        if exponent is not None and exponent > SETTLED_EXPONENT:
            alarm("never_settles", f"the norm of W1 still grows, as position^{exponent:.2f}: each commit moves it less "
                  "and what is heard is remembered less; use inner_decay, re-normalise, or reset")  # fmt: skip
        if self.watches == "training" and len(history) >= ROWS_BEFORE_TRENDS:
            losses = [float(old["inner_loss"]) for old in history if old["inner_loss"] is not None]
            half = len(losses) // 2
            if half >= ROWS_BEFORE_TRENDS // 2 and sum(losses[-half:]) >= sum(losses[:half]):
                alarm("inner_loss_not_falling", f"the inner loss has not fallen over {len(losses)} rows; raise base_lr "
                      "or the outer learning rate of the TTT parameters")  # fmt: skip
            gates = [float(old["gate"]) for old in history if old["gate"] is not None]
            if len(gates) >= ROWS_BEFORE_TRENDS and max(gates[-ROWS_BEFORE_TRENDS:]) < OPEN_GATE:
                alarm("gate_stuck", "the gate is still closed, so TTT adds nothing; raise the learning rate of alpha")
        return found


def growth_exponent(history: list[Row]) -> float | None:
    """Slope of log norm of W1 against log position over the last decade of positions.

    None until there are rows enough, and until the first is so far back that what every state does when it is young
    lies outside the decade.
    """
    positions = [int(row["step"] or 0) for row in history]
    last, first = positions[-1], next((position for position in positions if position > 0), 0)
    decade = [row for row, position in zip(history, positions, strict=True) if position * 10 >= last]
    if not first or last < YOUNG_TIMES * first or len(decade) < ROWS_BEFORE_TRENDS // 2:
        return None
    x = torch.tensor([float(row["step"] or 0) for row in decade], dtype=torch.float64).log()
    y = torch.tensor([float(row["W1_norm"] or 0) for row in decade], dtype=torch.float64).clamp_min(1e-30).log()
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / (x * x).sum())


def read_rows(path: str | Path) -> list[Row]:
    """Rows of a monitor's CSV with numbers as numbers and empty cells as None."""
    with Path(path).open(newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise ValueError(f"{path} is no monitor CSV of this version: its columns are {reader.fieldnames}")
        return [{column: _parsed(column, text) for column, text in row.items()} for row in reader]


def _parsed(column: str, text: str) -> float | int | str | None:
    if column == "layer":
        return text
    if text == "":
        return None
    return int(text) if column == "step" else float(text)


def _detached(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach()


def _statistics(tensor: Tensor) -> dict[str, float]:
    wide = tensor.double()
    streams = wide.flatten(1) if wide.dim() == 4 else wide.flatten()[None]
    return {
        "mean": wide.mean().item(),
        "std": wide.std(correction=0).item(),
        "max": wide.abs().max().item(),
        "norm": streams.norm(dim=1).mean().item(),
    }


def _distance(left: InnerWeights, right: InnerWeights) -> float:
    """Frobenius distance over all tensors of one stream, averaged over streams."""
    squared = torch.zeros((), dtype=torch.float64)
    for a, b in zip(left.tensors, right.tensors, strict=True):
        difference = (a.detach().double() - b.detach().double()).cpu()
        streams = difference.shape[0] if difference.dim() == 4 else 1
        squared = squared + difference.reshape(streams, -1).square().sum(dim=1)
    return squared.sqrt().mean().item()
