"""Stores with runs of every recipe, and a browser that says what a page shows, for the tests of the dashboard."""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

from mlflow import MlflowClient
from mlflow.entities import Metric, Param

from analysis.dashboard.layout import View
from analysis.dashboard.views import VIEWS

RECIPES = tuple(
    path.stem.replace("_", "-")
    for path in sorted((Path(__file__).parents[1] / "experiments" / "recipes").glob("*.py"))
    if not path.stem.startswith("_")
)
ASSISTANT_STAYS_CLOSED = """
if (location.protocol.startsWith('http')) {
    localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true');
    localStorage.setItem('mlflow.assistant.panelOpen_v1', 'false');
}
"""
"""MLflow opens a panel over a third of the page when it is first visited."""
ARMS, SEEDS = ("ttt", "window"), (0, 1)
BUCKETS = ("00000_00064", "00064_00256")
CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)


def metrics_of(view: View) -> dict[str, list[int]]:
    """{metric: steps}: a name or two for every pattern of a view."""
    found: dict[str, list[int]] = {}
    for chart in (chart for section in view.sections for chart in section.charts):
        for pattern in chart.metrics:
            for filled in dict.fromkeys(pattern.replace("*", bucket) for bucket in BUCKETS):
                found[filled] = [0, 10, 20] if chart.kind == "line" else [0]
    return found


def own_view(recipe: str) -> View:
    return next(view for view in VIEWS if view.recipes == (recipe,))


def log_arms(
    client: MlflowClient, recipe: str, metrics: dict[str, list[int]], *, arms: Sequence[str] = ARMS,
    seeds: Sequence[int] = SEEDS, scale: str = "cpu", adhoc: str = "false",
) -> str:  # fmt: skip
    """A recipe's runs as the experiments log them: its own, and one for each arm and seed. Gives its id."""
    known = client.get_experiment_by_name(recipe)
    experiment_id = client.create_experiment(recipe) if known is None else known.experiment_id
    common = {"scale": scale, "adhoc": adhoc, "git_commit": "0" * 40, "git_dirty": "false"}
    parent = client.create_run(experiment_id, tags={**common, "role": "experiment", "arm": "", "seed": "0"}).info.run_id
    client.set_terminated(parent)
    for place, (arm, seed) in enumerate(itertools.product(arms, seeds)):
        tags = {**common, "role": "arm", "arm": arm, "seed": str(seed), "mlflow.parentRunId": parent}
        tags["mlflow.runName"] = f"{arm}-{scale}-seed{seed}"
        run_id = client.create_run(experiment_id, tags=tags).info.run_id
        rows = [
            Metric(name, 1.0 + 0.1 * number + place + step / 100, 1_700_000_000_000 + step, step)
            for number, (name, steps) in enumerate(metrics.items())
            for step in steps
        ]
        client.log_batch(run_id, metrics=rows, params=[Param("recipe", recipe), Param("seed", str(seed))])
        client.set_terminated(run_id)
    return experiment_id


def log_every_recipe(client: MlflowClient) -> dict[str, str]:
    """Runs of every recipe, with every metric that its view shows. {recipe: experiment id}."""
    return {recipe: log_arms(client, recipe, metrics_of(own_view(recipe))) for recipe in RECIPES}


class Page:
    """One tab of a headless Chromium, driven over its DevTools socket."""

    def __init__(self, socket: Any) -> None:
        self._socket = socket
        self._ids = itertools.count(1)

    def call(self, method: str, **parameters: object) -> dict[str, Any]:
        number = next(self._ids)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self._socket.recv())
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def open(self, url: str) -> None:
        """A fresh load, also where only the part behind # changes."""
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=url)

    def value(self, script: str) -> Any:
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait_for(self, script: str, within_s: float, what: str) -> None:
        until = time.monotonic() + within_s
        while not self.value(script):
            if time.monotonic() > until:
                raise AssertionError(f"{what}: not within {within_s:.0f} s; the page says:\n{self.text()[:3000]}")
            time.sleep(0.5)

    def text(self) -> str:
        return str(self.value("document.body ? document.body.innerText : ''"))

    def picture(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


@contextmanager
def chromium_page(profile: Path, width: int = 1500, height: int = 6000) -> Iterator[Page]:
    """A tab of a new Chromium with its own profile, as high as a whole view: charts are drawn on sight."""
    import websocket

    command = [
        CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        "--remote-debugging-port=0", f"--user-data-dir={profile}", f"--window-size={width},{height}", "about:blank",
    ]  # fmt: skip
    browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        port = _port(profile / "DevToolsActivePort", browser)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=30) as answer:
            tab = next(each for each in json.load(answer) if each["type"] == "page")
        socket = websocket.create_connection(tab["webSocketDebuggerUrl"], timeout=120, suppress_origin=True)
        try:
            page = Page(socket)
            page.call(
                "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
            )
            page.call("Page.enable")
            page.call("Page.addScriptToEvaluateOnNewDocument", source=ASSISTANT_STAYS_CLOSED)
            yield page
        finally:
            socket.close()
    finally:
        browser.terminate()
        browser.wait(30)


def _port(file: Path, browser: subprocess.Popen[bytes]) -> int:
    until = time.monotonic() + 120
    while time.monotonic() < until and browser.poll() is None:
        if file.is_file() and (lines := file.read_text().splitlines()):
            return int(lines[0])
        time.sleep(0.2)
    raise AssertionError("Chromium did not open its DevTools port")
