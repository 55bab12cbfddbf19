"""Finished views of all seeds, as the report reads them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.fact_streams.measures import StreamMeasures
from experiments.harness import tracking
from experiments.harness.arm_process import is_finished
from experiments.harness.estimates import Estimate, estimate
from experiments.harness.outcomes import read_outcome
from experiments.harness.study import FinishedArm
from experiments.wraparound.configuration import View, WraparoundExperiment
from experiments.wraparound.training import LONG_FILE, ONSET_FILE


@dataclass(frozen=True, kw_only=True)
class ViewResult:
    """One view under every seed that finished, in the seeds' order. long: empty for a view that ends at the wrap."""

    view: View
    seeds: tuple[int, ...]
    onset: tuple[StreamMeasures, ...]
    long: tuple[StreamMeasures, ...]
    metrics: tuple[dict[str, float], ...]

    def metric(self, name: str) -> Estimate:
        return estimate([metrics.get(name, math.nan) for metrics in self.metrics])


def read_views(experiment: WraparoundExperiment, finished: Sequence[FinishedArm], uri: str) -> dict[str, ViewResult]:
    """Views in the configuration's order, each under the seeds it finished; one that none finished is left out."""
    folders: dict[str, list[tuple[int, Path]]] = {view.name: [] for view in experiment.views}
    for arm in finished:
        for path in sorted((arm.task.folder / "views").glob("*")):
            if path.name in folders and is_finished(path):
                folders[path.name].append((arm.seed, path))
    results = {}
    for view in experiment.views:
        rows = sorted(folders[view.name])
        if rows:
            results[view.name] = ViewResult(
                view=view,
                seeds=tuple(seed for seed, _ in rows),
                onset=tuple(StreamMeasures.load(path / ONSET_FILE) for _, path in rows),
                long=tuple(StreamMeasures.load(path / LONG_FILE) for _, path in rows if (path / LONG_FILE).is_file()),
                metrics=tuple(_logged(uri, path) for _, path in rows),
            )
    return results


def _logged(uri: str, folder: Path) -> dict[str, float]:
    outcome = read_outcome(folder)
    assert outcome is not None and outcome.run_id is not None
    return tracking.read_run(uri, outcome.run_id).metrics
