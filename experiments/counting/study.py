"""How experiments that only count are done: nothing to prepare, an arm a count, one table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from experiments.counting.arms import run_adapter_size_arm, run_model_cards_arm
from experiments.counting.configuration import AdapterSizeExperiment, CountingExperiment, ModelCardsExperiment
from experiments.counting.report import ArmRow, adapter_table, model_table, write_rows
from experiments.harness.study import FinishedArm, Report, RunOptions, Study


def prepare_nothing(config: CountingExperiment, options: RunOptions) -> None:
    """Arms share nothing."""


def report_adapter_size(
    config: AdapterSizeExperiment, folder: Path, uri: str, finished: Sequence[FinishedArm]
) -> Report:  # fmt: skip
    """The table of adapters, as CSV too."""
    rows = _rows(finished)
    return Report(table=adapter_table(rows), files=[write_rows(folder / "adapters.csv", rows)])


def report_model_cards(
    config: ModelCardsExperiment, folder: Path, uri: str, finished: Sequence[FinishedArm]
) -> Report:  # fmt: skip
    """The table of models, as CSV too."""
    rows = _rows(finished)
    return Report(table=model_table(rows), files=[write_rows(folder / "models.csv", rows)])


def _rows(finished: Sequence[FinishedArm]) -> list[ArmRow]:
    return [
        ArmRow(
            arm=arm.name,
            status="not run" if arm.outcome is None else arm.outcome.status.lower(),
            metrics={} if arm.run is None else arm.run.metrics,
        )
        for arm in finished
    ]


ADAPTER_SIZE = Study(prepare=prepare_nothing, run_arm=run_adapter_size_arm, report=report_adapter_size)
MODEL_CARDS = Study(
    prepare=prepare_nothing,
    run_arm=run_model_cards_arm,
    report=report_model_cards,
    preloads=("experiments.counting.built_modules",),
)
