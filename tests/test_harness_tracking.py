"""The store: where it is, one run per arm, statuses, and what is read back."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from experiments.harness import tracking
from experiments.harness.tracking import RunIdentity, RunLogger

IDENTITY = RunIdentity(
    experiment="a-recipe", role="arm", arm="an-arm", seed=5, scale="smoke", is_adhoc=True,
    config_fingerprint="0123456789ab", parent_run_id=None,
)  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    home = tmp_path_factory.mktemp("store")
    uri = f"sqlite:///{home / 'mlflow.db'}"
    tracking.prepare_store(uri)
    return uri, tracking.experiment_id_of(uri, "a-recipe", home)


def test_the_store_is_the_users_where_one_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking.store_uri(tmp_path / "runs") == f"sqlite:///{tmp_path}/runs/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://somewhere:5000")
    assert tracking.store_uri(tmp_path) == "http://somewhere:5000"
    link = "http://somewhere:5000/?workflowType=machine_learning#/experiments/7/runs"
    assert tracking.how_to_open("http://somewhere:5000/", "7") == link


def test_preparing_a_store_twice_changes_nothing(store: tuple[str, str]) -> None:
    uri, experiment = store
    tracking.prepare_store(uri)
    assert tracking.experiment_id_of(uri, "a-recipe", Path("elsewhere")) == experiment


def test_a_run_goes_from_running_to_killed_to_running_to_finished_under_one_id(store: tuple[str, str]) -> None:
    uri, experiment = store
    logger = RunLogger.start(uri, experiment, IDENTITY, {"a.long": "x" * 900, "b": 3})
    assert tracking.read_run(uri, logger.run_id).status == "RUNNING"
    logger.log_metrics({"train/loss": 2.0}, step=1)
    logger.finalize("success")
    assert tracking.read_run(uri, logger.run_id).status == "RUNNING", "Lightning's own finalize ends no run"
    logger.close("KILLED")
    killed = tracking.read_run(uri, logger.run_id)
    assert killed.status == "KILLED"
    assert (killed.tags["arm"], killed.tags["seed"], killed.tags["adhoc"]) == ("an-arm", "5", "true")
    again = RunLogger.reopen(uri, logger.run_id)
    assert tracking.read_run(uri, logger.run_id).status == "RUNNING"
    again.log_metrics({"train/loss": 1.5}, step=2)
    again.close("FINISHED")
    finished = tracking.read_run(uri, logger.run_id)
    assert (finished.status, finished.metrics["train/loss"]) == ("FINISHED", 1.5)


def test_a_run_that_goes_on_with_other_code_is_no_longer_of_a_clean_tree(
    store: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, experiment = store
    monkeypatch.setattr(tracking, "code_version", lambda: ("a" * 40, "false"))
    run_id = RunLogger.start(uri, experiment, IDENTITY, {}).run_id
    assert run_id is not None
    RunLogger.reopen(uri, run_id)
    assert tracking.read_run(uri, run_id).tags["git_dirty"] == "false"
    monkeypatch.setattr(tracking, "code_version", lambda: ("b" * 40, "false"))
    RunLogger.reopen(uri, run_id)
    tags = tracking.read_run(uri, run_id).tags
    assert (tags["git_commit"], tags["resumed_at_git_commit"], tags["git_dirty"]) == ("a" * 40, "b" * 40, "true")


def test_a_step_that_was_repeated_counts_once(store: tuple[str, str]) -> None:
    uri, experiment = store
    logger = RunLogger.start(uri, experiment, IDENTITY, {})
    for step, value in ((1, 4.0), (2, 3.0), (3, 2.0)):
        logger.log_metrics({"m": value}, step=step)
    logger.close("KILLED")
    again = RunLogger.reopen(uri, logger.run_id)
    for step, value in ((2, 3.0), (3, 2.0), (4, 1.0)):
        again.log_metrics({"m": value}, step=step)
    again.close("FINISHED")
    assert tracking.read_history(uri, logger.run_id, "m") == [(1, 4.0), (2, 3.0), (3, 2.0), (4, 1.0)]


def test_the_tracking_room_switches_mlflows_telemetry_off() -> None:
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert os.environ["DO_NOT_TRACK"] == "true"
