"""Every prepared view, opened in headless Chromium from MLflow's own server: its sentences and charts stand there."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from dashboard_stores import ARMS, CHROMIUM, Page, chromium_page, log_arms, log_every_recipe, metrics_of
from test_dashboard import free_port

from analysis.dashboard.layout import View, bars, section
from analysis.dashboard.page_state import VIEW_TAG, link
from analysis.dashboard.saving import SavedView, save_views
from analysis.dashboard.server import mlflow_server
from analysis.dashboard.views import VIEWS
from analysis.store import open_store

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="needs a chromium on PATH (apt-get install chromium)"),
    pytest.mark.skipif(importlib.util.find_spec("websocket") is None, reason="needs websocket-client"),
    pytest.mark.timeout(900),
]
SHOWS_WITHIN_S = 120
OPENED = tuple(view for view in VIEWS if view.key not in ("llama-omni-stages", "moshi-stages"))
"""All but the comparisons of stages: they take a second stage, and the recipes have one each so far."""
LONG = View(
    key="long",
    title="Long",
    recipes=("long",),
    sections=(section("Too long for plain text", bars("long/*")),),
    columns=(),
)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Iterator[tuple[str, dict[str, SavedView]]]:
    folder = tmp_path_factory.mktemp("dashboard")
    shutil.copy(empty_store, folder / "mlflow.db")
    store = open_store(f"sqlite:///{folder / 'mlflow.db'}")
    log_every_recipe(store.client)
    log_arms(store.client, "long", {f"long/{number:064d}": [0] for number in range(120)}, seeds=(0,))
    saved = {each.view.key: each for each in save_views(store, [*VIEWS, LONG]) if isinstance(each, SavedView)}
    with mlflow_server(store.uri, folder / "artifacts", free_port()) as base:
        yield base, saved


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium_page(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.mark.parametrize("key", [view.key for view in OPENED])
def test_a_view_opens_and_shows_its_sentences_and_charts(
    key: str, address: tuple[str, dict[str, SavedView]], page: Page
) -> None:
    base, saved = address
    found = saved[key]
    page.open(link(base, found.view, found.experiment_ids))
    sentences = [section.sentence for section in found.view.sections]
    charts = [chart for section in found.view.sections for chart in section.charts]
    titles = [" vs ".join(names) for chart in charts for names in chart.shown(metrics_of(found.view))]
    everything = json.dumps([*sentences, *titles])
    page.wait_for(
        f"document.body && {everything}.every(each => document.body.innerText.includes(each))",
        SHOWS_WITHIN_S, f"{key}: every sentence and title",
    )  # fmt: skip
    plots = "[...document.querySelectorAll('.js-plotly-plot')]"
    drawn = f"{plots}.filter(plot => plot.querySelector('.trace, .bars .point')).length"
    page.wait_for(f"{drawn} >= {len(titles)}", SHOWS_WITHIN_S, f"{key}: {len(titles)} charts with something drawn")
    text = page.text()
    assert all(arm in text for arm in ARMS)
    assert "Error loading" not in text


def test_a_compressed_view_opens_as_well(address: tuple[str, dict[str, SavedView]], page: Page) -> None:
    base, saved = address
    (experiment_id,) = saved[LONG.key].experiment_ids
    tags = open_store(base).client.get_experiment(experiment_id).tags
    assert json.loads(tags[VIEW_TAG + LONG.key])["state"].startswith("deflate;")
    page.open(link(base, LONG, [experiment_id]))
    page.wait_for(
        f"document.body && document.body.innerText.includes({json.dumps(LONG.sections[0].sentence)})",
        SHOWS_WITHIN_S, "the sentence",
    )  # fmt: skip
