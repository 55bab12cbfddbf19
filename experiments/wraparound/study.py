"""How the wraparound experiment is done."""

from __future__ import annotations

from pathlib import Path

from experiments.fact_streams.data_source import fact_streams_read
from experiments.harness.study import RunOptions, Study
from experiments.wraparound.configuration import WraparoundExperiment
from experiments.wraparound.mechanics_arm import older_releases
from experiments.wraparound.report import report_wraparound
from experiments.wraparound.training import run_wraparound_arm


def find_older_releases(experiment: WraparoundExperiment, options: RunOptions) -> tuple[Path, ...]:
    """Folders of older releases of the moshi package; streams need no preparing, they are drawn as they are read."""
    return older_releases(options.data_dir)


WRAPAROUND = Study(
    prepare=find_older_releases,
    run_arm=run_wraparound_arm,
    report=report_wraparound,
    data_sources=fact_streams_read,
    preloads=("experiments.wraparound.training",),
)
