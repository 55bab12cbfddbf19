"""The newest finished run of a recipe, and tidy tables of what it and its arms have logged."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas

from analysis.artifacts import artifact_names, read_artifact
from analysis.eligibility import NO_EVIDENCE_SCALE, ExperimentRun, experiment_runs
from analysis.runs import SCALES, LoggedRun
from analysis.statistics import t_interval
from analysis.store import Store
from analysis.tables import Table

RUN_ID_CHARACTERS, COMMIT_CHARACTERS = 8, 12


class NothingToShowError(ValueError):
    """No finished run has what a picture is made of; the message says which command makes one."""


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """One finished run of a recipe with its arms, and the store that its curves and files are read from."""

    store: Store
    recipe: str
    run: ExperimentRun

    @property
    def caption(self) -> str:
        """Scale, seeds, run and commit: no number is shown without them."""
        parent = self.run.parent
        seeds = ", ".join(map(str, self.run.seeds)) or "none"
        parts = [
            f"{self.recipe}, scale {self.run.scale}, seeds {seeds}",
            f"run {parent.run_id[:RUN_ID_CHARACTERS]} at {parent.commit[:COMMIT_CHARACTERS]}",
        ]
        if self.run.scale == NO_EVIDENCE_SCALE:
            parts.append("smoke tries the code, its numbers mean nothing")
        if parent.tags.get("adhoc") == "true":
            parts.append("fields were changed by hand (adhoc)")
        if parent.tags.get("has_every_arm") == "false":
            parts.append("not every arm was run")
        return "; ".join(parts)

    @property
    def arms(self) -> list[LoggedRun]:
        """Finished runs of arms (and of views), in the order in which they began."""
        finished = [run for run in self.run.arms if run.status == "FINISHED"]
        return sorted(finished, key=lambda run: (run.start_ms, run.run_id))

    @cached_property
    def config(self) -> dict[str, Any]:
        """The whole configuration, as `config.json` of the experiment's run has it."""
        return json.loads(read_artifact(self.store, self.run.parent.run_id, "config.json"))

    @cached_property
    def files(self) -> list[str]:
        """Paths of the files of the experiment's own run."""
        return artifact_names(self.store, self.run.parent.run_id)

    def csv(self, path: str, *columns: str) -> Table:
        """A CSV file of the experiment's own run. Raises NothingToShowError where it has none of that name, or one
        without the columns that are needed."""
        if path not in self.files:
            raise NothingToShowError(
                f"{self.caption} has no {path}; run it whole: {command(self.recipe, self.run.scale)}"
            )
        table: Table = pandas.read_csv(io.BytesIO(read_artifact(self.store, self.run.parent.run_id, path)))
        lacking = [name for name in columns if name not in table.columns]
        if lacking:
            how = command(self.recipe, self.run.scale)
            raise NothingToShowError(
                f"{path} of {self.caption} has no {', '.join(lacking)}: other code wrote it; run it again: {how}"
            )
        return table

    def text(self, path: str) -> str:
        """A text file of the experiment's own run."""
        return read_artifact(self.store, self.run.parent.run_id, path).decode()

    def bucketed(self, section: str) -> Table:
        """arm, seed, first, end, value of metrics `SECTION/00256_01024`. Raises NothingToShowError for none."""
        rows = [
            (run.arm, run.seed, *(int(edge) for edge in name.removeprefix(f"{section}/").split("_")), value)
            for run in self.arms
            for name, value in sorted(run.metrics.items())
            if name.startswith(f"{section}/")
        ]
        return self._table(rows, ("arm", "seed", "first", "end", "value"), f"{section}/...")

    def metric(self, name: str) -> Table:
        """arm, seed, value of one metric's last value. Raises NothingToShowError where no arm has it."""
        rows = [(run.arm, run.seed, run.metrics[name]) for run in self.arms if name in run.metrics]
        return self._table(rows, ("arm", "seed", "value"), name)

    def history(self, name: str) -> Table:
        """arm, seed, step, value of every step of one metric. Raises NothingToShowError where no arm has it."""
        rows = [
            (run.arm, run.seed, step, value)
            for run in self.arms
            if name in run.metrics
            for step, value in self.store.history(run.run_id, name)
        ]
        return self._table(rows, ("arm", "seed", "step", "value"), name)

    def _table(self, rows: Sequence[tuple[Any, ...]], columns: Sequence[str], what: str) -> Table:
        if not rows:
            raise NothingToShowError(f"no finished arm of {self.caption} has logged {what}")
        return pandas.DataFrame(rows, columns=list(columns))


def newest_finished(store: Store, recipe: str, scale: str | None = None) -> FinishedRun:
    """The newest finished run of a recipe at a scale, or at the largest that has one; whole runs of unchanged
    configurations come before others.

    Raises:
        NothingToShowError: there is none.
        ValueError: there is no such scale.
    """
    if scale is not None and scale not in SCALES:
        raise ValueError(f"scale is {scale!r}; it is one of {', '.join(SCALES)}")
    found = [
        run
        for run in experiment_runs(store.runs(recipe))
        if run.parent.status == "FINISHED" and run.scale in SCALES and scale in (None, run.scale)
    ]
    if not found:
        at = f" at scale {scale}" if scale else ""
        raise NothingToShowError(f"no finished run of {recipe}{at} in {store.uri}: {command(recipe, scale or 'smoke')}")

    def rank(run: ExperimentRun) -> tuple[int, bool, bool, int]:
        whole, unchanged = run.has_every_arm, run.parent.tags.get("adhoc") == "false"
        return SCALES.index(run.scale), whole, unchanged, run.parent.start_ms

    return FinishedRun(store=store, recipe=recipe, run=max(found, key=rank))


def command(recipe: str, scale: str) -> str:
    """What runs a recipe at a scale."""
    return f"make exp-{recipe} SCALE={'full WEIGHTS=path' if scale == 'pretrained' else scale}"


def over_seeds(table: Table, by: Sequence[str], value: str = "value") -> Table:
    """The columns of `by` in the order of their first appearance, then value, low, high (mean and 95 % interval over
    rows, Student's t; ends NaN for one row) and seeds. NaN values take no part."""
    rows = []
    for key, group in table.dropna(subset=[value]).groupby(list(by), sort=False):
        found = t_interval(group[value].tolist())
        rows.append((*key, found.value, found.low, found.high, found.seeds))
    return pandas.DataFrame(rows, columns=[*by, "value", "low", "high", "seeds"])


def chosen(table: Table, column: str, names: Sequence[str] | None) -> Table:
    """Rows of the given names, in their order; all rows where None. Raises NothingToShowError where none has any."""
    if names is None:
        return table
    order = {name: place for place, name in enumerate(names)}
    kept = table[table[column].isin(list(order))]
    if kept.empty:
        there = ", ".join(map(str, dict.fromkeys(table[column])))
        raise NothingToShowError(f"no {column} of {', '.join(names)} is there; there are {there}")
    return kept.sort_values(column, key=lambda found: found.map(order), kind="stable")
