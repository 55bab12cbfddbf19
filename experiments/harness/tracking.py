"""The one place that talks to MLflow: where the store is, one run per arm and seed, and what is read back from it.

Everything is local unless the user points `MLFLOW_TRACKING_URI` elsewhere; MLflow's own telemetry is switched off.
Metrics are collected and written in batches: a write costs 20-30 ms on SQLite whatever its size, and a batch that is
written when a checkpoint is saved leaves no metric of a saved step unwritten.
"""

from __future__ import annotations

import logging
import os
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")

from lightning.pytorch.loggers import MLFlowLogger
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run
from mlflow.exceptions import MlflowException

from experiments.harness.data_source import DataSource, log_data
from experiments.harness.machine import hardware, software

FLUSH_AFTER_SECONDS = 10.0
LONGEST_PARAMETER = 250
MOST_PARAMETERS_PER_CALL = 100
MOST_METRICS_PER_CALL = 1000
FOLDER_TAG = "run_folder"
"""Where an arm's files are: its checkpoints are too large for the store, and what goes on from it reads them there."""

RunStatus = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]


def store_uri(runs_dir: Path) -> str:
    """`MLFLOW_TRACKING_URI` where it is set, else a SQLite file, by its absolute path, in the folder of runs."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(runs_dir / 'mlflow.db').resolve()}"


def prepare_store(uri: str) -> None:
    """Creates or migrates a database store, once, before several processes open it (they would race)."""
    if not uri.startswith(("sqlite:", "postgresql", "mysql", "mssql")):
        return
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    from mlflow.db import upgrade

    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    assert upgrade.callback is not None
    upgrade.callback(uri)


def experiment_id_of(uri: str, name: str, runs_dir: Path) -> str:
    """The experiment's id, created where it does not exist. Artifacts of a local store lie in the folder of runs.

    Raises:
        ValueError: the experiment was deleted in the store, where its name is still taken.
    """
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        local = uri.startswith("sqlite:")
        artifacts = (runs_dir / "mlartifacts" / name).resolve().as_uri() if local else None
        return client.create_experiment(name, artifact_location=artifacts)
    if experiment.lifecycle_stage == "deleted":
        raise ValueError(
            f"the MLflow experiment {name!r} is deleted in {uri}; restore it with: "
            f"mlflow experiments restore --experiment-id {experiment.experiment_id}"
        )
    return experiment.experiment_id


@dataclass(frozen=True, kw_only=True)
class RunIdentity:
    """What one MLflow run is: its experiment, arm, seed and where its code and configuration come from.

    role: an "arm" is one row of the experiment under one seed; the "experiment" is their parent run, which holds what
    is made of all of them and has no arm of its own. data_sources: what it reads.
    """

    experiment: str
    role: Literal["experiment", "arm"]
    arm: str
    seed: int
    scale: str
    is_adhoc: bool
    config_fingerprint: str
    parent_run_id: str | None
    data_sources: tuple[DataSource, ...] = ()

    def tags(self) -> dict[str, str]:
        commit, dirty = code_version()
        name = self.arm if self.role == "arm" else self.experiment
        tags = {
            "mlflow.runName": f"{name}-{self.scale}-seed{self.seed}",
            "mlflow.source.git.commit": commit,
            "role": self.role,
            "arm": self.arm,
            "seed": str(self.seed),
            "scale": self.scale,
            "adhoc": str(self.is_adhoc).lower(),
            "git_commit": commit,
            "git_dirty": dirty,
            "config_fingerprint": self.config_fingerprint,
            "hardware": hardware(),
            "software": software(),
        }
        return tags if self.parent_run_id is None else tags | {"mlflow.parentRunId": self.parent_run_id}


def code_version() -> tuple[str, str]:
    """Commit of this code and whether files differ from it ("true"/"false"); both "unknown" outside a git checkout."""
    here = Path(__file__).resolve().parent
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        changes = subprocess.run(["git", "status", "--porcelain"], cwd=here, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown", "unknown"
    return commit.stdout.strip(), str(bool(changes.stdout.strip())).lower()


class RunLogger(MLFlowLogger):
    """Lightning's MLflow logger for one run that already exists, with batched writes.

    Lightning would set the run FINISHED after every `fit` or `validate` and FAILED on Ctrl-C; here `finalize` only
    writes what is pending, and `close` sets the status once, by the one who knows it.
    """

    def __init__(self, uri: str, run_id: str) -> None:
        super().__init__(tracking_uri=uri, run_id=run_id)
        self._pending: list[Metric] = []
        self._last_write = time.monotonic()

    @classmethod
    def start(cls, uri: str, experiment_id: str, identity: RunIdentity, parameters: Mapping[str, Any]) -> RunLogger:
        """A new run with its tags and parameters."""
        client = MlflowClient(uri)
        run = client.create_run(experiment_id, tags=identity.tags())
        rows = [Param(name, str(value)[:LONGEST_PARAMETER]) for name, value in parameters.items()]
        for first in range(0, len(rows), MOST_PARAMETERS_PER_CALL):
            client.log_batch(run.info.run_id, params=rows[first : first + MOST_PARAMETERS_PER_CALL])
        log_data(client, run.info.run_id, identity.data_sources)
        return cls(uri, run.info.run_id)

    @classmethod
    def reopen(cls, uri: str, run_id: str) -> RunLogger:
        """Continues an interrupted run under its own id; one that goes on with other code counts as of a dirty tree."""
        client = MlflowClient(uri)
        commit, dirty = code_version()
        before = client.get_run(run_id).data.tags
        ours = (commit, dirty, software())
        if ours != tuple(before.get(name) for name in ("git_commit", "git_dirty", "software")):
            client.set_tag(run_id, "resumed_at_git_commit", commit)
            client.set_tag(run_id, "git_dirty", "true")
        client.update_run(run_id, status="RUNNING")
        return cls(uri, run_id)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        now_ms = int(time.time() * 1000)
        self._pending += [Metric(name, float(value), now_ms, step or 0) for name, value in metrics.items()]
        if time.monotonic() - self._last_write > FLUSH_AFTER_SECONDS:
            self.write_pending()

    def write_pending(self) -> None:
        """Writes every collected metric to the store."""
        while self._pending:
            batch = self._pending[:MOST_METRICS_PER_CALL]
            self.experiment.log_batch(self.run_id, metrics=batch)
            self._pending = self._pending[len(batch) :]
        self._last_write = time.monotonic()

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        self.experiment.log_artifact(self.run_id, str(path), folder)

    def set_tag(self, name: str, value: str) -> None:
        self.experiment.set_tag(self.run_id, name, value)

    def finalize(self, status: str = "success") -> None:
        self.write_pending()

    def close(self, status: RunStatus) -> None:
        """Writes what is pending and ends the run with `status`."""
        self.write_pending()
        self.experiment.set_terminated(self.run_id, status)


@dataclass(frozen=True, kw_only=True)
class LoggedRun:
    """One run as the store has it: tags, and for every metric the value of its highest step. start_ms: since 1970."""

    run_id: str
    status: str
    start_ms: int
    tags: dict[str, str]
    metrics: dict[str, float]


def read_run(uri: str, run_id: str) -> LoggedRun:
    """What was logged for a run, read back from the store."""
    return _logged(MlflowClient(uri).get_run(run_id))


def find_run(uri: str, run_id: str) -> LoggedRun | None:
    """The run of that id, or None where the store has none."""
    try:
        return read_run(uri, run_id)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def arms_of(uri: str, recipe: str, *, arm: str, scale: str, seed: int) -> list[LoggedRun]:
    """Runs of one arm, of any status, newest first; none of a recipe that was never run."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(recipe)
    if experiment is None:
        return []
    wanted = {"role": "arm", "arm": arm, "scale": scale, "seed": str(seed)}
    query = " and ".join(f"tags.{name} = '{value}'" for name, value in wanted.items())
    found = client.search_runs([experiment.experiment_id], query, order_by=["attributes.start_time DESC"])
    return [_logged(run) for run in found]


def _logged(run: Run) -> LoggedRun:
    return LoggedRun(
        run_id=run.info.run_id, status=run.info.status, start_ms=run.info.start_time or 0, tags=dict(run.data.tags),
        metrics=dict(run.data.metrics),
    )  # fmt: skip


def read_history(uri: str, run_id: str, metric: str) -> list[tuple[int, float]]:
    """(step, value) of one metric, by step; a step repeated after an interruption counts once, with its last value."""
    by_step = {
        row.step: row.value
        for row in sorted(MlflowClient(uri).get_metric_history(run_id, metric), key=lambda row: row.timestamp)
    }
    return sorted(by_step.items())


def set_status(uri: str, run_id: str, status: RunStatus) -> None:
    """Ends a run whose own process can no longer do it."""
    MlflowClient(uri).set_terminated(run_id, status)


def how_to_open(uri: str, experiment_id: str) -> str:
    """One line that says where the runs can be looked at."""
    if uri.startswith("http"):
        return f"{uri.rstrip('/')}/?workflowType=machine_learning#/experiments/{experiment_id}/runs"
    start = f"make mlflow-ui (or: mlflow ui --backend-store-uri {uri})"
    return f"http://127.0.0.1:5000/?workflowType=machine_learning#/experiments/{experiment_id}/runs after: {start}"
