"""Settings every test shares: no network, one thread, quiet third parties."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

import backbones  # noqa: F401  # settles how moshi is imported, before any test imports it

if TYPE_CHECKING:
    from analysis_stores import Checkout

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of the outside reference vectors."""
    return GOLDEN


@pytest.fixture(autouse=True)
def _one_thread_and_one_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow store without runs, as an SQLite file to copy: making one takes seconds."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments(max_results=1)
    return path


@pytest.fixture
def checkout(tmp_path: Path, empty_store: Path) -> Checkout:
    """A git repository with the tests' own claims, and an empty store of runs."""
    from analysis_stores import Checkout

    return Checkout.make(tmp_path / "repository", empty_store)
