"""Opens the store of runs, or says in one sentence why it cannot be read."""

from __future__ import annotations

import os
import sqlite3
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from analysis.runs import LoggedRun

SERVER_ANSWERS_WITHIN_SECONDS = 5.0
RUNS_PER_CALL = 1000


class StoreError(ValueError):
    """The store cannot be read; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class Store:
    """A store that has been found readable. uri: SQLAlchemy's for a database, http(s) for a server."""

    uri: str
    client: MlflowClient = field(repr=False)

    def recipes(self) -> dict[str, str]:
        """{name: id} of the experiments that were not deleted, by name."""
        found = self.client.search_experiments(max_results=RUNS_PER_CALL)
        return {each.name: each.experiment_id for each in sorted(found, key=lambda each: each.name)}

    def runs(self, recipe: str | None = None) -> list[LoggedRun]:
        """Every run of a recipe (of all where None), oldest first; none for a recipe that was never run."""
        known = self.recipes()
        names = list(known) if recipe is None else [recipe] if recipe in known else []
        found = [run for name in names for run in self._runs_of(name, known[name])]
        return sorted(found, key=lambda run: (run.start_ms, run.run_id))

    def history(self, run_id: str, metric: str) -> list[tuple[int, float]]:
        """(step, value) of one metric, by step; a step that was logged twice counts with its last value."""
        rows = sorted(self.client.get_metric_history(run_id, metric), key=lambda row: row.timestamp)
        return sorted({row.step: row.value for row in rows}.items())

    def require_runs(self) -> None:
        """Raises StoreError where nothing was ever run."""
        if not any(self.client.search_runs([each], max_results=1) for each in self.recipes().values()):
            raise StoreError(f"the store {self.uri} holds no runs; start one, e.g. make exp-memory")

    def _runs_of(self, name: str, experiment_id: str) -> Iterator[LoggedRun]:
        token: str | None = None
        while True:
            page = self.client.search_runs([experiment_id], max_results=RUNS_PER_CALL, page_token=token)
            yield from (_logged(run, name) for run in page)
            token = page.token
            if not token:
                return


def default_uri(root: Path) -> str:
    """`MLFLOW_TRACKING_URI` where it is set, else `runs/mlflow.db` of the repository at `root`."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(root / 'runs' / 'mlflow.db').resolve()}"


def open_store(uri: str) -> Store:
    """The store at `uri`, checked before MLflow touches it: MLflow makes, or migrates, what it does not find.

    Raises:
        StoreError: there is none, it is of another schema or no MLflow store at all, or the server does not answer.
    """
    if uri.startswith("sqlite:///"):
        _check_sqlite(Path(uri.removeprefix("sqlite:///")), uri)
    elif uri.startswith(("http://", "https://")):
        _check_server(uri)
    elif not uri.startswith(("postgresql", "mysql", "mssql")):
        raise StoreError(
            f"{uri!r} is no store of runs; give sqlite:////absolute/path/mlflow.db, a database's URI or a server's "
            "http address (MLFLOW_TRACKING_URI, or --store)"
        )
    try:
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
    except MlflowException as error:
        raise StoreError(f"MLflow cannot open {uri}: {error}") from error
    return Store(uri=uri, client=client)


def _check_sqlite(path: Path, uri: str) -> None:
    if not path.is_file():
        raise StoreError(
            f"there is no store of runs at {path}; run a recipe first (e.g. make exp-memory), or point "
            "MLFLOW_TRACKING_URI (or --store) to one"
        )
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
            rows = database.execute("SELECT version_num FROM alembic_version").fetchall()
    except sqlite3.DatabaseError as error:
        raise StoreError(f"{path} is no MLflow store ({error}); name another with MLFLOW_TRACKING_URI") from error
    if [row[0] for row in rows] != [_expected_schema()]:
        raise StoreError(
            f"the store {path} has schema {', '.join(row[0] for row in rows) or 'none'}, and the installed MLflow "
            f"reads {_expected_schema()}: another version wrote it. Copy the file, then: mlflow db upgrade {uri} "
            "(a store of a newer MLflow can only be read by that one)"
        )


def _expected_schema() -> str:
    from mlflow.store.db.utils import _get_latest_schema_revision

    return str(_get_latest_schema_revision())


def _check_server(uri: str) -> None:
    """Asks once: MLflow itself would try again for minutes."""
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=SERVER_ANSWERS_WITHIN_SECONDS):
            return
    except (urllib.error.URLError, TimeoutError, OSError) as error:
        raise StoreError(
            f"no MLflow server answers at {uri} ({error}); start it (make mlflow-ui starts one of the local runs), or "
            "unset MLFLOW_TRACKING_URI to read runs/mlflow.db"
        ) from error


def _logged(run: Run, experiment: str) -> LoggedRun:
    return LoggedRun(
        run_id=run.info.run_id, experiment=experiment, status=run.info.status, start_ms=run.info.start_time or 0,
        tags=dict(run.data.tags), params=dict(run.data.params), metrics=dict(run.data.metrics),
    )  # fmt: skip
