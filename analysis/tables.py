"""Tidy pandas tables of finished runs: a row for each run, parameter, tag, metric or step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas

from analysis.runs import LoggedRun
from analysis.store import Store

Table = Any
"""A pandas.DataFrame that is sliced and grouped: pandas ships no types, and what pyright guesses of them is wrong."""

RUN_COLUMNS = (
    "run_id", "recipe", "role", "arm", "seed", "scale", "status", "adhoc", "git_dirty", "git_commit", "parent_run_id",
    "started",
)  # fmt: skip


def runs_table(runs: Iterable[LoggedRun]) -> pandas.DataFrame:
    """One row a run, with what identifies it; `started` in UTC."""
    rows = [
        (
            run.run_id, run.experiment, run.role, run.arm, run.seed, run.scale, run.status,
            run.tags.get("adhoc", "") == "true", run.tags.get("git_dirty", "unknown"), run.commit, run.parent_run_id,
            pandas.Timestamp(run.start_ms, unit="ms", tz="UTC"),
        )
        for run in runs
    ]  # fmt: skip
    return pandas.DataFrame(rows, columns=list(RUN_COLUMNS))


def params_table(runs: Iterable[LoggedRun]) -> pandas.DataFrame:
    """run_id, name, value (text, as logged: cut at 250 characters)."""
    return _long(((run.run_id, run.params) for run in runs), "value")


def tags_table(runs: Iterable[LoggedRun]) -> pandas.DataFrame:
    """run_id, name, value."""
    return _long(((run.run_id, run.tags) for run in runs), "value")


def metrics_table(runs: Iterable[LoggedRun], section: str = "") -> pandas.DataFrame:
    """run_id, recipe, arm, seed, scale, name, value: each metric's value of its highest step.

    section: only names that start with it, e.g. "loss_by_position/".
    """
    rows = [
        (run.run_id, run.experiment, run.arm, run.seed, run.scale, name, value)
        for run in runs
        for name, value in sorted(run.metrics.items())
        if name.startswith(section)
    ]
    return pandas.DataFrame(rows, columns=["run_id", "recipe", "arm", "seed", "scale", "name", "value"])


def histories_table(store: Store, runs: Iterable[LoggedRun], metrics: Sequence[str]) -> pandas.DataFrame:
    """run_id, arm, seed, name, step, value: every logged step of the given metrics."""
    rows = [
        (run.run_id, run.arm, run.seed, name, step, value)
        for run in runs
        for name in metrics
        if name in run.metrics
        for step, value in store.history(run.run_id, name)
    ]
    return pandas.DataFrame(rows, columns=["run_id", "arm", "seed", "name", "step", "value"])


def _long(runs: Iterable[tuple[str, Mapping[str, Any]]], value: str) -> pandas.DataFrame:
    rows = [(run_id, name, each) for run_id, of_run in runs for name, each in sorted(of_run.items())]
    return pandas.DataFrame(rows, columns=["run_id", "name", value])
