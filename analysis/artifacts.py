"""Files that finished runs have left in the store: their names, and their content."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

from mlflow.exceptions import MlflowException

from analysis.store import Store


def artifact_names(store: Store, run_id: str, folder: str = "") -> list[str]:
    """Paths of a run's files below `folder`, those in folders of it included, sorted.

    Raises:
        ValueError: the place of the run's files cannot be read.
    """
    try:
        return sorted(_names_below(store, run_id, folder))
    except (MlflowException, OSError) as error:
        raise ValueError(f"the files of run {run_id} in {store.uri} cannot be listed: {error}") from error


def read_artifact(store: Store, run_id: str, path: str) -> bytes:
    """The content of one file of a run.

    Raises:
        ValueError: the run has no such file, or the place of its files is out of reach.
    """
    try:
        with TemporaryDirectory() as folder:
            return Path(store.client.download_artifacts(run_id, path, dst_path=folder)).read_bytes()
    except (MlflowException, OSError) as error:
        raise ValueError(
            f"run {run_id} in {store.uri} has no file {path} that can be read from here ({error}); a run whose files "
            "were moved or deleted must be run again"
        ) from error


def _names_below(store: Store, run_id: str, folder: str) -> Iterator[str]:
    for found in store.client.list_artifacts(run_id, folder or None):
        if found.is_dir:
            yield from _names_below(store, run_id, found.path)
        else:
            yield found.path
