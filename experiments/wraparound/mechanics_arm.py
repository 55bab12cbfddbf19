"""The arm that trains nothing: measures the mechanics and keeps what a figure of them needs."""

from __future__ import annotations

from pathlib import Path

import numpy

from experiments.harness.study import ArmWork
from experiments.wraparound.claimed import largest_change_of_earlier_outputs
from experiments.wraparound.configuration import WraparoundExperiment
from experiments.wraparound.mechanics.measure import measure_mechanics

ARRAYS_FILE = "mechanics.npz"
OLDER_RELEASES_FOLDER = "older_moshi"
"""Under the data folder: where `make older-moshi` unpacks them."""


def older_releases(data_dir: Path) -> tuple[Path, ...]:
    """Unpacked older releases of the moshi package, none where they were never fetched."""
    return tuple(sorted(path for path in (data_dir / OLDER_RELEASES_FOLDER).glob("moshi-*") if path.is_dir()))


def run_mechanics(experiment: WraparoundExperiment, work: ArmWork) -> None:
    """Logs every metric of the mechanics; older releases of the package take part where they were fetched."""
    releases: tuple[Path, ...] = work.task.data
    if not releases:
        work.logger.set_tag("older_rings", "not measured; `make older-moshi` fetches the releases")
    report = measure_mechanics(experiment.mechanics.with_older_releases(*releases))
    largest = {"causality/largest_change_of_earlier_outputs": largest_change_of_earlier_outputs(report.metrics)}
    work.logger.log_metrics(report.metrics | largest)
    path = work.task.folder / ARRAYS_FILE
    numpy.savez_compressed(path, **{name.replace("/", "."): array for name, array in report.arrays.items()})
    work.logger.log_artifact(path)
