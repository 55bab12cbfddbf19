"""Finished views of all seeds, as the report reads them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.fact_streams.measures import StreamMeasures
from experiments.harness import tracking
from experiments.harness.estimates import Estimate, estimate
from experiments.harness.finished_views import view_folders
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
    views = {view.name: view for view in experiment.views}
    return {
        name: ViewResult(
            view=views[name],
            seeds=tuple(folders),
            onset=tuple(StreamMeasures.load(path / ONSET_FILE) for path in folders.values()),
            long=tuple(
                StreamMeasures.load(path / LONG_FILE) for path in folders.values() if (path / LONG_FILE).is_file()
            ),
            metrics=tuple(_logged(uri, path) for path in folders.values()),
        )
        for name, folders in view_folders(list(views), finished).items()
    }


def _logged(uri: str, folder: Path) -> dict[str, float]:
    outcome = read_outcome(folder)
    assert outcome is not None and outcome.run_id is not None
    return tracking.read_run(uri, outcome.run_id).metrics
