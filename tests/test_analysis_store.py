"""Opening a store says what is wrong with it; runs come back as tidy tables."""

from __future__ import annotations

import dataclasses
import re
import socket
import sqlite3
from pathlib import Path

import pytest
from analysis_stores import Checkout

from analysis.__main__ import main
from analysis.store import StoreError, default_uri, open_store
from analysis.tables import histories_table, metrics_table, params_table, runs_table, tags_table


def test_a_missing_store_is_named_and_not_made(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "mlflow.db"
    with pytest.raises(StoreError, match=re.escape(f"there is no store of runs at {path}; run a recipe first")):
        open_store(f"sqlite:///{path}")
    assert not path.exists()


def test_a_file_that_is_no_store_is_named(tmp_path: Path) -> None:
    text, tables = tmp_path / "notes.db", tmp_path / "other.db"
    text.write_text("no database at all, but long enough for SQLite to look at its first hundred bytes" * 3)
    sqlite3.connect(tables).execute("CREATE TABLE birds (name TEXT)").connection.commit()
    for path in (text, tables):
        with pytest.raises(StoreError, match="is no MLflow store"):
            open_store(f"sqlite:///{path}")


def test_a_store_of_an_older_schema_is_named_and_left_as_it_is(checkout: Checkout) -> None:
    path = checkout.root / "runs" / "mlflow.db"
    with sqlite3.connect(path) as database:
        database.execute("UPDATE alembic_version SET version_num = '451aebb31d03'")
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"has schema 451aebb31d03, .* reads \w+: .*mlflow db upgrade sqlite:///"):
        open_store(checkout.uri)
    assert path.read_bytes() == before


def test_a_server_that_is_down_is_named_at_once() -> None:
    with socket.socket() as taken:  # a port that nobody listens on
        taken.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(StoreError, match=f"no MLflow server answers at {uri} .*make mlflow-ui"):
            open_store(uri)


def test_an_address_that_is_none_is_refused() -> None:
    with pytest.raises(StoreError, match="'runs' is no store of runs; give sqlite:"):
        open_store("runs")


def test_a_store_without_runs_is_told(checkout: Checkout, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["findings", "--root", str(checkout.root), "--store", checkout.uri]) == 2
    assert "holds no runs; start one" in capsys.readouterr().err


def test_the_store_is_the_users_where_one_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert default_uri(tmp_path) == f"sqlite:///{tmp_path.resolve() / 'runs' / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert default_uri(tmp_path) == "http://127.0.0.1:5000"


def test_tables_have_one_row_for_each_thing(checkout: Checkout) -> None:
    arms = {("ttt", 0): {"loss/a": 1.0, "recall/b": 0.5}, ("ttt", 1): {"loss/a": 2.0}, ("window", 0): {}}
    parent = checkout.run("drift", {"rise": 0.1}, arms, params={"width": "64"})
    checkout.run("memory", {}, {("ring", 0): {"bytes": 3.0}}, adhoc="true")
    store = open_store(checkout.uri)
    runs = runs_table(store.runs())
    assert list(runs["recipe"].value_counts().sort_index().items()) == [("drift", 4), ("memory", 2)]
    assert set(runs[runs["parent_run_id"] == parent]["arm"]) == {"ttt", "window"}
    assert runs[runs["recipe"] == "memory"]["adhoc"].all() and not runs[runs["recipe"] == "drift"]["adhoc"].any()
    assert store.runs("never-run") == []
    losses = metrics_table(store.runs("drift"), "loss/")
    assert losses.pivot(index="arm", columns="seed", values="value").loc["ttt"].tolist() == [1.0, 2.0]
    assert params_table(store.runs("drift")).query("name == 'width'")["value"].tolist() == ["64", "64", "64"]
    assert "git_commit" in set(tags_table(store.runs("memory"))["name"])


def test_what_the_experiments_log_of_a_run_is_what_is_read_here(checkout: Checkout) -> None:
    from experiments.harness.tracking import RunIdentity, RunLogger, code_version

    experiment_id = checkout.client.create_experiment("drift")
    identity = RunIdentity(
        experiment="drift", role="experiment", arm="", seed=4, scale="full", is_adhoc=True, config_fingerprint="a1",
        parent_run_id=None,
    )  # fmt: skip
    parent = RunLogger.start(checkout.uri, experiment_id, identity, {})
    parent.log_metrics({"rise": 0.25})
    parent.close("FINISHED")
    child = dataclasses.replace(identity, role="arm", arm="ttt", seed=5, is_adhoc=False, parent_run_id=parent.run_id)
    RunLogger.start(checkout.uri, experiment_id, child, {"weights_digest": "c3d4"}).close("KILLED")
    own, arm = open_store(checkout.uri).runs("drift")
    assert (own.role, own.seed, own.scale, own.status, own.parent_run_id) == ("experiment", 4, "full", "FINISHED", "")
    assert (own.tags["adhoc"], own.metrics) == ("true", {"rise": 0.25})
    assert (own.commit, own.tags["git_dirty"]) == code_version()
    assert (arm.role, arm.arm, arm.seed, arm.scale, arm.status) == ("arm", "ttt", 5, "pretrained", "KILLED")
    assert (arm.parent_run_id, arm.tags["adhoc"]) == (parent.run_id, "false")


def test_a_history_holds_every_step_once_with_its_last_value(checkout: Checkout) -> None:
    checkout.run("drift", {}, {("ttt", 0): {}})
    store = open_store(checkout.uri)
    run = next(each for each in store.runs("drift") if each.role == "arm")
    for step, value, timestamp in ((5, 1.0, 10), (0, 9.0, 20), (5, 2.0, 30)):
        checkout.client.log_metric(run.run_id, "loss", value, timestamp=timestamp, step=step, synchronous=True)
    table = histories_table(store, store.runs("drift"), ["loss", "never"])
    assert table[["step", "value"]].to_numpy().tolist() == [[0, 9.0], [5, 2.0]]
