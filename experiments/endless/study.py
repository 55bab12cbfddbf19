"""How an endless-stream experiment is done."""

from __future__ import annotations

from experiments.endless.arm import run_endless_arm
from experiments.endless.configuration import EndlessExperiment
from experiments.endless.report import report_endless
from experiments.harness.study import RunOptions, Study


def prepare_nothing(experiment: EndlessExperiment, options: RunOptions) -> None:
    """Streams are drawn as they are read."""


ENDLESS = Study(
    prepare=prepare_nothing,
    run_arm=run_endless_arm,
    report=report_endless,
    preloads=("experiments.endless.arm",),
)
