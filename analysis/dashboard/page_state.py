"""The state of MLflow's page of runs, as a saved view keeps it. Undocumented: read off MLflow 3.17's own page.

A saved view is an experiment's tag `mlflow.sharedViewState.<key>`, an envelope of name, times (ms since 1970) and the
state as JSON text. What the page finds missing it fills with its defaults; charts and sections it takes as they are.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from mlflow.utils.validation import MAX_EXPERIMENT_TAG_VAL_LENGTH

from analysis.dashboard.layout import Chart, View, matching

MLFLOW_SEEN = "3.17"
"""The release whose page this was read off, and that the tests open."""
VIEW_TAG = "mlflow.sharedViewState."
MOST_GROUPS = 100
"""Groups in one chart; the page shows ten unless told otherwise."""
PAGE = "/?workflowType=machine_learning#"
LINE_DEFAULTS: Mapping[str, Any] = {
    "lineSmoothness": 0, "xAxisScaleType": "linear", "scaleType": "linear", "range": {}, "xAxisKey": "step",
    "selectedXAxisMetricKey": "", "yAxisKey": "metric", "yAxisExpressions": [], "ignoreOutliers": False,
    "useGlobalXaxisKey": True, "useGlobalLineSmoothing": True,
}  # fmt: skip
COMPRESSED = "deflate;"
"""What a compressed state begins with: base64 of zlib's stream follows."""


class ViewError(ValueError):
    """A view cannot be written for these runs; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Logged:
    """What is logged of the runs that a view shows: names of their metrics, and (arm, recipe) of each."""

    metrics: frozenset[str]
    arms: frozenset[tuple[str, str]]


def page_state(view: View, logged: Logged, scale: str, *, several_recipes: bool) -> dict[str, Any]:
    """The page's state for a view: arms of one scale, mean over their runs; sections and charts that have metrics.

    MLflow puts charts of every other metric in sections named by the metrics' first parts; those stand below, closed.

    Raises:
        ViewError: none of the view's metrics was logged.
    """
    charts, sections = _charts_and_sections(view, logged.metrics)
    if not charts:
        raise ViewError(f"the view {view.key!r} has nothing to show: none of its metrics was logged")
    keys = [{"mode": "tag", "groupByData": "arm"}]
    if several_recipes:
        keys.append({"mode": "param", "groupByData": "recipe"})
    return {
        "searchFilter": f"tags.role = 'arm' and tags.adhoc = 'false' and tags.scale = '{scale}'",
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "selectedColumns": [f"tags.`{each}`" for each in ("arm", "seed", "git_commit")]
        + [f"metrics.`{each}`" for each in matching(view.columns, logged.metrics)],
        "groupBy": {"aggregateFunction": "average", "groupByKeys": keys},
        "groupsExpanded": {_group(keys, *each): False for each in sorted(logged.arms)},
        "useGroupedValuesInCharts": True,
        "runsHiddenMode": "SHOW_ALL",
        "hideEmptyCharts": True,
        "isAccordionReordered": True,
        "compareRunCharts": charts,
        "compareRunSections": sections + _closed_sections(logged.metrics),
    }  # fmt: skip


def _group(keys: Sequence[Mapping[str, str]], *values: str) -> str:
    return ",".join(f"{key['mode']}.{key['groupByData']}.{value}" for key, value in zip(keys, values, strict=False))


def _charts_and_sections(view: View, metrics: Iterable[str]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    charts: list[dict[str, Any]] = []
    sections: list[dict[str, Any]] = []
    for number, section in enumerate(view.sections):
        section_id = f"{view.key}-{number}"
        shown = [(chart, names) for chart in section.charts for names in chart.shown(metrics)]
        charts += [
            _chart(chart, names, f"{section_id}-{place}", section_id) for place, (chart, names) in enumerate(shown)
        ]
        if shown:
            sections.append(_section(section_id, section.sentence, is_open=True))
    return charts, sections


def _chart(chart: Chart, metrics: Sequence[str], chart_id: str, section_id: str) -> dict[str, Any]:
    of_both = {
        "uuid": chart_id, "type": chart.kind.upper(), "metricSectionId": section_id, "runsCountToCompare": MOST_GROUPS,
        "metricKey": metrics[0], "selectedMetricKeys": list(metrics),
    }  # fmt: skip
    return {**of_both, **LINE_DEFAULTS} if chart.kind == "line" else of_both


def _section(section_id: str, name: str, *, is_open: bool) -> dict[str, Any]:
    return {"uuid": section_id, "name": name, "display": is_open, "isReordered": True}


def _closed_sections(metrics: Iterable[str]) -> list[dict[str, Any]]:
    """Of all metrics by the parts before their last slash, which is where MLflow puts them of its own accord."""
    names = sorted({each.rpartition("/")[0] for each in metrics if "/" in each and not each.startswith("system/")})
    own = [*names, "Model metrics", "System metrics"]
    return [_section(f"other-{number}", name, is_open=False) for number, name in enumerate(own)]


def envelope(view: View, state: Mapping[str, Any], created_ms: int, updated_ms: int) -> str:
    """The tag's value; the state is compressed, as MLflow does it, where plain text would be longer than a tag.

    Raises:
        ViewError: it is longer than MLflow takes all the same.
    """
    plain = json.dumps(state, separators=(",", ":"))
    compressed = COMPRESSED + base64.b64encode(zlib.compress(plain.encode(), 9)).decode()
    times = {"createdAt": created_ms, "updatedAt": updated_ms}
    texts = [json.dumps({"name": view.title, **times, "state": each}) for each in (plain, compressed)]
    fitting = [text for text in texts if len(text) <= MAX_EXPERIMENT_TAG_VAL_LENGTH]
    if not fitting:
        raise ViewError(
            f"the view {view.key!r} takes {len(texts[1]):,} characters and MLflow keeps "
            f"{MAX_EXPERIMENT_TAG_VAL_LENGTH:,}; give it fewer metrics (analysis/dashboard/views.py)"
        )
    return fitting[0]


def opened(text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(envelope, state) of a tag's value that was written here."""
    outer = json.loads(text)
    state = outer["state"]
    if state.startswith(COMPRESSED):
        state = zlib.decompress(base64.b64decode(state.removeprefix(COMPRESSED))).decode()
    return outer, json.loads(state)


def link(base: str, view: View, experiment_ids: Sequence[str]) -> str:
    """Opens the view of these experiments' runs at the server `base`."""
    shown = f"viewStateShareKey={quote(view.key)}&compareRunsMode=CHART"
    if len(experiment_ids) == 1:
        return f"{base.rstrip('/')}{PAGE}/experiments/{experiment_ids[0]}/runs?{shown}"
    ids = quote(json.dumps(list(experiment_ids), separators=(",", ":")))
    return f"{base.rstrip('/')}{PAGE}/compare-experiments/s?experiments={ids}&{shown}"
