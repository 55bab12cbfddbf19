"""The runs that say something of one trained model: its own, the stages before it, and its validation."""

from __future__ import annotations

from dataclasses import dataclass

from analysis.runs import LoggedRun
from analysis.store import Store

VALIDATION = "validation"
VALIDATED_RUN_TAG = "validated_run"
START = "start_run_id"


@dataclass(frozen=True, kw_only=True)
class ModelRuns:
    """run: the arm's that the page is about. before: what it started from, and so on back, nearest first.

    validation: the newest finished one; None where there is none.
    """

    store: Store
    run: LoggedRun
    before: tuple[LoggedRun, ...]
    validation: LoggedRun | None

    @property
    def whole_line(self) -> tuple[LoggedRun, ...]:
        """From the first stage to this run."""
        return (*reversed(self.before), self.run)


def runs_of(store: Store, run_id: str) -> ModelRuns:
    """Everything the store has of the model that an arm's run trained.

    Raises:
        ValueError: there is no such run, or it is none of an arm.
    """
    every = {run.run_id: run for run in store.runs()}
    run = every.get(run_id)
    if run is None:
        raise ValueError(f"there is no run {run_id} in {store.uri}; give an arm's run id as MLflow shows it")
    if run.role != "arm" or run.experiment == VALIDATION:
        raise ValueError(f"run {run_id} is no arm's; give the run of the arm whose model is to be launched")
    validations = [
        other
        for other in every.values()
        if other.experiment == VALIDATION and other.status == "FINISHED" and other.tags.get(VALIDATED_RUN_TAG) == run_id
    ]
    return ModelRuns(
        store=store,
        run=run,
        before=tuple(_before(run, every)),
        validation=max(validations, key=lambda other: other.start_ms, default=None),
    )


def _before(run: LoggedRun, every: dict[str, LoggedRun]) -> list[LoggedRun]:
    found: list[LoggedRun] = []
    start = _start(run, every)
    while start is not None and start not in (run, *found):
        found.append(start)
        start = _start(start, every)
    return found


def _start(run: LoggedRun, every: dict[str, LoggedRun]) -> LoggedRun | None:
    """The run whose weights this one began with: named by its id, or another arm of the same experiment and seed."""
    named = every.get(run.params.get(START, ""))
    if named is not None:
        return named
    arm = run.params.get("starts_from", "None")
    siblings = [
        other
        for other in every.values()
        if other.arm == arm and other.seed == run.seed and other.parent_run_id == run.parent_run_id != ""
    ]
    return max(siblings, key=lambda other: other.start_ms, default=None)
