"""Prepared views: what they show, that no edit is ever overwritten, and the server that serves them."""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import mlflow
import pytest
from dashboard_stores import ARMS, RECIPES, log_arms, log_every_recipe, metrics_of, own_view

from analysis.__main__ import main
from analysis.dashboard.layout import View, bars, section
from analysis.dashboard.page_state import MLFLOW_SEEN, VIEW_TAG, link, opened
from analysis.dashboard.saving import LeftOut, SavedView, largest_scale, save_views
from analysis.dashboard.server import ServerError, check_port, mlflow_server, version_of
from analysis.dashboard.views import MEMORY, VIEWS
from analysis.runs import LoggedRun
from analysis.store import Store, open_store

ROOT = Path(__file__).parents[1]
TOY = View(
    key="toy",
    title="A toy",
    recipes=("memory",),
    sections=(section("What is far is forgotten", bars("recall/*")), section("Nothing here", bars("x/*"))),
    columns=("recall/far",),
)
ACROSS = next(view for view in VIEWS if view.key == "across-backbones")


@pytest.fixture
def store(tmp_path: Path, empty_store: Path) -> Store:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return open_store(f"sqlite:///{tmp_path / 'mlflow.db'}")


def tag(store: Store, experiment_id: str, view: View = TOY) -> str:
    return store.client.get_experiment(experiment_id).tags[VIEW_TAG + view.key]


def state(store: Store, experiment_id: str, view: View = TOY) -> dict[str, Any]:
    return opened(tag(store, experiment_id, view))[1]


def shown_metrics(page: dict[str, Any]) -> list[str]:
    return [name for chart in page["compareRunCharts"] for name in chart["selectedMetricKeys"]]


def saved(store: Store, view: View = TOY) -> SavedView:
    (found,) = save_views(store, [view])
    assert isinstance(found, SavedView), found
    return found


def test_every_recipe_has_a_view_of_its_own() -> None:
    own = [view.recipes[0] for view in VIEWS if len(view.recipes) == 1 and view.recipes[0] in RECIPES]
    assert sorted(own) == sorted(RECIPES)
    assert len({view.key for view in VIEWS}) == len(VIEWS)


def test_every_metric_of_a_view_is_one_that_the_experiments_log() -> None:
    """By the parts of its name, which stand in the code; names that code composes are taken apart here."""
    code = "\n".join(
        path.read_text() for package in ("experiments", "ttt_core") for path in (ROOT / package).rglob("*.py")
    )
    composed = re.compile(r"_by_updates|_at_the_end_speech_lr1|onset_|_at_\d{3}k_positions|_(code_)?lines|_files")
    for view in VIEWS:
        for metric in {*metrics_of(view), *view.columns}:
            for part in re.split(r"/|\*|\d{5}_\d{5}", composed.sub("", metric)):
                assert part in code, f"{view.key}: {metric}: nothing logs {part!r}"


def test_a_view_shows_what_was_logged_under_its_sentences(store: Store) -> None:
    at = log_arms(store.client, "memory", {"recall/far": [0], "recall/near": [0], "loss": [0], "train/loss": [0, 5]})
    found = saved(store)
    assert (found.experiment_ids, found.scale, found.outcome) == ((at,), "cpu", "written")
    page = state(store, at)
    charts = page["compareRunCharts"]
    assert shown_metrics(page) == ["recall/far", "recall/near"]
    assert {chart["type"] for chart in charts} == {"BAR"}
    shown, *others = page["compareRunSections"]
    assert (shown["name"], shown["display"], shown["uuid"]) == (
        "What is far is forgotten",
        True,
        charts[0]["metricSectionId"],
    )
    assert [each["name"] for each in others] == ["recall", "train", "Model metrics", "System metrics"]
    assert not any(each["display"] for each in others)
    assert page["groupBy"] == {"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": "arm"}]}
    assert "metrics.`recall/far`" in page["selectedColumns"] and page["isAccordionReordered"] is True
    assert set(page["groupsExpanded"]) == {f"tag.arm.{arm}" for arm in ARMS}


def test_the_filter_of_a_view_finds_the_arms_of_one_scale_alone(store: Store) -> None:
    log_arms(store.client, "memory", {"recall/far": [0]}, scale="smoke")
    at = log_arms(store.client, "memory", {"recall/far": [0]}, scale="cpu")
    log_arms(store.client, "memory", {"recall/adhoc": [0]}, scale="gpu", adhoc="true")
    assert saved(store).scale == "cpu"
    page = state(store, at)
    assert shown_metrics(page) == ["recall/far"]
    found = store.client.search_runs([at], page["searchFilter"])
    assert len(found) == 4
    assert {(run.data.tags["role"], run.data.tags["scale"], run.data.tags["adhoc"]) for run in found} == {
        ("arm", "cpu", "false")
    }


def test_the_scale_is_the_one_that_most_recipes_were_run_at() -> None:
    def runs(*scales: str) -> list[LoggedRun]:
        return [
            LoggedRun(
                run_id="", experiment="", status="", start_ms=0, tags={"scale": scale}, params={}, metrics={"a": 1.0}
            )
            for scale in scales
        ]

    assert largest_scale([runs("smoke", "cpu"), runs("cpu", "gpu")]) == "cpu"
    assert largest_scale([runs("smoke", "cpu"), runs("smoke", "gpu", "cpu")]) == "cpu"
    assert largest_scale([runs("smoke", "full")]) == "full"
    assert largest_scale([[], runs("nowhere")]) is None


def test_a_view_that_is_still_ours_is_renewed_and_keeps_its_date(store: Store) -> None:
    at = log_arms(store.client, "memory", {"recall/far": [0]})
    assert saved(store).outcome == "written"
    before = tag(store, at)
    assert saved(store).outcome == "unchanged" and tag(store, at) == before
    log_arms(store.client, "memory", {"recall/near": [0]})
    assert saved(store).outcome == "renewed"
    assert shown_metrics(state(store, at)) == ["recall/far", "recall/near"]
    assert json.loads(tag(store, at))["createdAt"] == json.loads(before)["createdAt"]


@pytest.mark.parametrize("edited", ["state", "name", "no view at all"])
def test_a_view_that_was_edited_by_hand_is_never_overwritten(store: Store, edited: str) -> None:
    at = log_arms(store.client, "memory", {"recall/far": [0]})
    saved(store)
    if edited == "state":
        outer = json.loads(tag(store, at))
        outer["state"] = outer["state"].replace("SHOW_ALL", "FIRST_10_RUNS")
        text = json.dumps(outer)
    else:
        text = tag(store, at).replace("A toy", "My toy") if edited == "name" else "my notes"
    store.client.set_experiment_tag(at, VIEW_TAG + TOY.key, text)
    log_arms(store.client, "memory", {"recall/near": [0]})
    for _ in range(2):
        assert saved(store).outcome == "edited by hand: left as it is"
        assert tag(store, at) == text


def test_a_view_of_somebody_else_under_the_same_key_is_left_alone(store: Store) -> None:
    at = log_arms(store.client, "memory", {"recall/far": [0]})
    store.client.set_experiment_tag(
        at, VIEW_TAG + TOY.key, '{"name":"theirs","createdAt":1,"updatedAt":1,"state":"{}"}'
    )
    assert saved(store).outcome == "edited by hand: left as it is"
    assert state(store, at) == {}


def test_a_view_without_runs_or_metrics_is_left_out_and_says_why(store: Store) -> None:
    log_arms(store.client, "llama-omni-stage1", {"loss_by_position/00000_00064": [0]})
    reasons = {each.view.key: each.reason for each in save_views(store, VIEWS) if isinstance(each, LeftOut)}
    assert reasons["memory"] == "no arm of memory has been run"
    assert reasons["across-backbones"].startswith("only llama-omni-stage1 has been run")
    assert "llama-omni-stage1" not in reasons
    log_arms(store.client, "memory", {"loss": [0]})
    (found,) = save_views(store, [MEMORY])
    assert isinstance(found, LeftOut) and "none of its metrics was logged" in found.reason


def test_a_view_too_long_for_a_tag_is_compressed_and_one_longer_still_is_left_out(store: Store) -> None:
    names = {f"recall/{number:064d}": [0] for number in range(300)}
    at = log_arms(store.client, "memory", names, seeds=(0,))
    assert saved(store).outcome == "written"
    assert shown_metrics(state(store, at)) == sorted(names)
    assert json.loads(tag(store, at))["state"].startswith("deflate;") and len(tag(store, at)) <= 20_000
    assert saved(store).outcome == "unchanged"
    log_arms(store.client, "memory", {f"recall/{random.Random(each).randbytes(90).hex()}": [0] for each in range(200)})
    (found,) = save_views(store, [TOY])
    assert isinstance(found, LeftOut)
    assert re.search(r"takes \d\d,\d{3} characters and MLflow keeps 20,000", found.reason)


def test_a_view_of_several_recipes_is_kept_at_each_and_groups_by_recipe(store: Store) -> None:
    one = log_arms(store.client, "llama-omni-stage1", {"loss_by_position/00000_00064": [0]})
    other = log_arms(store.client, "moshi-stage1", {"loss_by_position/00064_00256": [0]})
    found = saved(store, ACROSS)
    assert found.experiment_ids == (one, other)
    page = state(store, one, ACROSS)
    assert tag(store, one, ACROSS) == tag(store, other, ACROSS)
    assert page["groupBy"]["groupByKeys"][1] == {"mode": "param", "groupByData": "recipe"}
    assert shown_metrics(page) == ["loss_by_position/00000_00064", "loss_by_position/00064_00256"]
    assert f"tag.arm.{ARMS[0]},param.recipe.moshi-stage1" in page["groupsExpanded"]
    assert link("http://here", ACROSS, found.experiment_ids) == (
        f"http://here/?workflowType=machine_learning#/compare-experiments/s?experiments=%5B%22{one}%22%2C%22{other}%22%5D"
        "&viewStateShareKey=across-backbones&compareRunsMode=CHART"
    )


def test_a_view_of_several_recipes_that_was_edited_at_one_is_left_at_all(store: Store) -> None:
    one = log_arms(store.client, "llama-omni-stage1", {"loss_by_position/00000_00064": [0]})
    other = log_arms(store.client, "moshi-stage1", {"loss_by_position/00000_00064": [0]})
    saved(store, ACROSS)
    before = tag(store, one, ACROSS)
    store.client.set_experiment_tag(other, VIEW_TAG + ACROSS.key, before.replace("Across", "Over"))
    log_arms(store.client, "moshi-stage1", {"loss_by_position/00064_00256": [0]})
    assert saved(store, ACROSS).outcome == "edited by hand: left as it is"
    assert tag(store, one, ACROSS) == before and tag(store, other, ACROSS) == before.replace("Across", "Over")
    store.client.delete_experiment_tag(other, VIEW_TAG + ACROSS.key)
    assert saved(store, ACROSS).outcome == "renewed"
    assert tag(store, one, ACROSS) == tag(store, other, ACROSS) != before


def test_every_view_fits_and_the_installed_page_knows_its_fields(store: Store) -> None:
    """The page is minified, but fields that it stores keep their names."""
    assert mlflow.__version__.startswith(f"{MLFLOW_SEEN}."), "another MLflow: open the views before raising MLFLOW_SEEN"
    scripts = (Path(mlflow.__file__).parent / "server" / "js" / "build" / "static" / "js").glob("*.js")
    page = "\n".join(script.read_text() for script in scripts)
    log_every_recipe(store.client)
    for each in save_views(store, VIEWS):
        if isinstance(each, LeftOut):
            assert each.view.key in ("llama-omni-stages", "moshi-stages"), each
            continue
        fields = state(store, each.experiment_ids[0], each.view)
        charts, sections = fields["compareRunCharts"], fields["compareRunSections"]
        for field in {*fields, *(name for item in (*charts, *sections) for name in item)}:
            assert re.search(rf"\b{field}\b", page), field
        sentences = [entry["name"] for entry in sections if entry["display"]]
        assert sentences == [entry.sentence for entry in each.view.sections]
        logged = {name for recipe in filter(each.view.shows, RECIPES) for name in metrics_of(own_view(recipe))}
        expected = [names for entry in each.view.sections for chart in entry.charts for names in chart.shown(logged)]
        assert [tuple(entry["selectedMetricKeys"]) for entry in charts] == expected
        ids = [entry["uuid"] for entry in (*charts, *sections)]
        assert len(set(ids)) == len(ids) and {entry["metricSectionId"] for entry in charts} <= set(ids)
    assert f'"{VIEW_TAG}"' in page


def test_the_command_prints_links_and_says_what_it_left(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    at = log_arms(store.client, "memory", metrics_of(MEMORY))
    command = ["dashboard", "--store", store.uri, "--no-server", "--port", "5123"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "Bytes of a conversation (scale cpu; written)" in out
    assert f"http://127.0.0.1:5123{link('', MEMORY, [at])}" in out
    assert "not shown: When Moshi's ring wraps: no arm of kv-wraparound has been run" in out


def test_what_stops_the_command_is_said_in_a_line(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dashboard", "--store", "sqlite:////nowhere/mlflow.db"]) == 2
    assert "there is no store of runs at /nowhere/mlflow.db; run a recipe first" in capsys.readouterr().err
    assert main(["dashboard", "--store", store.uri]) == 2
    assert "holds no runs; start one" in capsys.readouterr().err
    log_arms(store.client, "memory", metrics_of(MEMORY))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["dashboard", "--store", store.uri, "--port", str(port)]) == 2
    assert f"port {port} cannot be used" in capsys.readouterr().err
    with sqlite3.connect(store.uri.removeprefix("sqlite:///")) as database:
        database.execute("UPDATE alembic_version SET version_num = '451aebb31d03'")
    assert main(["dashboard", "--store", store.uri]) == 2
    assert "has schema 451aebb31d03" in capsys.readouterr().err


@pytest.mark.slow
def test_mlflows_own_server_gives_the_view_back_and_ends_with_its_port_free(store: Store, tmp_path: Path) -> None:
    at = log_arms(store.client, "memory", {"recall/far": [0]})
    saved(store)
    port = free_port()
    with mlflow_server(store.uri, tmp_path / "artifacts", port) as address:
        with urllib.request.urlopen(f"{address}/ajax-api/2.0/mlflow/experiments/get?experiment_id={at}") as answer:
            tags = {each["key"]: each["value"] for each in json.load(answer)["experiment"]["tags"]}
        assert tags[VIEW_TAG + TOY.key] == tag(store, at)
        assert version_of(address) == mlflow.__version__
        remote = open_store(address)
        assert saved(remote).outcome == "unchanged"
        with pytest.raises(ServerError, match=f"port {port} cannot be used"):
            check_port(port)
    check_port(port)


@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_ending_the_command_ends_the_server(store: Store, sign: signal.Signals) -> None:
    log_arms(store.client, "memory", metrics_of(MEMORY))
    port = free_port()
    command = [sys.executable, "-m", "analysis", "dashboard", "--store", store.uri, "--port", str(port)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        for printed in running.stdout:
            if printed.startswith("Ctrl-C"):
                break
        assert version_of(f"http://127.0.0.1:{port}") == mlflow.__version__
        running.send_signal(sign)
        assert running.wait(60) == 0
    check_port(port)


@pytest.mark.slow
def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    why = r"ended with code \d+ before it answered; the end of its log:\n"
    with pytest.raises(ServerError, match=why), mlflow_server("nonsense://nowhere", tmp_path, free_port()):
        pass


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
