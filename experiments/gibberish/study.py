"""How a gibberish experiment is done."""

from __future__ import annotations

from experiments.gibberish.arm import run_gibberish_arm
from experiments.gibberish.configuration import GibberishExperiment
from experiments.gibberish.report import report_gibberish
from experiments.harness.study import RunOptions, Study


def prepare_nothing(experiment: GibberishExperiment, options: RunOptions) -> None:
    """Streams are drawn as they are read."""


GIBBERISH = Study(
    prepare=prepare_nothing,
    run_arm=run_gibberish_arm,
    report=report_gibberish,
    preloads=("experiments.gibberish.arm",),
)
