"""Finished views of all seeds, as the report reads them, and means over seeds with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy
from scipy import stats

from experiments.harness import tracking
from experiments.harness.arm_process import is_finished
from experiments.harness.outcomes import read_outcome
from experiments.harness.study import FinishedArm
from experiments.wraparound.configuration import View, WraparoundExperiment
from experiments.wraparound.measures import ViewMeasures
from experiments.wraparound.training import MEASURES_FILE

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over seeds and its 95 % interval (Student's t); the interval is NaN where there is one seed only."""

    mean: float
    low: float
    high: float
    seeds: int

    def __str__(self) -> str:
        if math.isnan(self.low):
            return f"{self.mean:+.3f} (1 seed)"
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def estimate(values: Sequence[float]) -> Estimate:
    """Of one value a seed. NaN where any of them is."""
    found = numpy.asarray(values, dtype=numpy.float64)
    mean = float(found.mean()) if len(found) else math.nan
    if len(found) < 2 or math.isnan(mean):
        return Estimate(mean=mean, low=math.nan, high=math.nan, seeds=len(found))
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, len(found) - 1) * stats.sem(found))
    return Estimate(mean=mean, low=mean - half, high=mean + half, seeds=len(found))


@dataclass(frozen=True, kw_only=True)
class ViewResult:
    """One view under every seed that finished: measures and logged metrics, in the seeds' order."""

    view: View
    seeds: tuple[int, ...]
    measures: tuple[ViewMeasures, ...]
    metrics: tuple[dict[str, float], ...]

    def metric(self, name: str) -> Estimate:
        return estimate([metrics.get(name, math.nan) for metrics in self.metrics])


def read_views(experiment: WraparoundExperiment, finished: Sequence[FinishedArm], uri: str) -> dict[str, ViewResult]:
    """Views in the configuration's order, each under the seeds that all of them finished, so that arms are compared
    under the same seeds. A view that no seed finished is left out."""
    folders: dict[str, list[tuple[int, Path]]] = {view.name: [] for view in experiment.views}
    for arm in finished:
        for path in sorted((arm.task.folder / "views").glob("*")):
            if path.name in folders and is_finished(path):
                folders[path.name].append((arm.seed, path))
    results = {}
    begun = [{seed for seed, _ in rows} for rows in folders.values() if rows]
    common = set.intersection(*begun) if begun else set[int]()
    for view in experiment.views:
        rows = sorted((seed, path) for seed, path in folders[view.name] if seed in common)
        if rows:
            results[view.name] = ViewResult(
                view=view,
                seeds=tuple(seed for seed, _ in rows),
                measures=tuple(ViewMeasures.load(path / MEASURES_FILE) for _, path in rows),
                metrics=tuple(_logged(uri, path) for _, path in rows),
            )
    return results


def _logged(uri: str, folder: Path) -> dict[str, float]:
    outcome = read_outcome(folder)
    assert outcome is not None and outcome.run_id is not None
    return tracking.read_run(uri, outcome.run_id).metrics
