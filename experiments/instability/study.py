"""How the instability experiment is done."""

from __future__ import annotations

from experiments.harness.study import RunOptions, Study
from experiments.instability.arm import run_instability_arm
from experiments.instability.configuration import InstabilityExperiment
from experiments.instability.report import report_instability


def prepare_nothing(experiment: InstabilityExperiment, options: RunOptions) -> None:
    """Streams are drawn as they are read."""


INSTABILITY = Study(
    prepare=prepare_nothing,
    run_arm=run_instability_arm,
    report=report_instability,
    preloads=("experiments.instability.arm",),
)
