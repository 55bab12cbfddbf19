"""The state of MLflow's page of runs, as a saved view keeps it. Undocumented: read off MLflow 3.17's own page.

A saved view is an experiment's tag `mlflow.sharedViewState.<key>`, an envelope of name, times (ms since 1970) and the
state as JSON text. What the page finds missing it fills with its defaults; charts and sections it takes as they are.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from mlflow.utils.validation import MAX_EXPERIMENT_TAG_VAL_LENGTH

from analysis.dashboard.layout import Chart, View

MLFLOW_SEEN = "3.17"
"""The release whose page this was read off, and that the tests open."""
VIEW_TAG = "mlflow.sharedViewState."
MOST_BARS = 100
"""Groups in one chart; the page shows ten unless told otherwise."""
PAGE = "/?workflowType=machine_learning#"
LINE_DEFAULTS: Mapping[str, Any] = {
    "lineSmoothness": 0, "xAxisScaleType": "linear", "scaleType": "linear", "range": {}, "xAxisKey": "step",
    "selectedXAxisMetricKey": "", "yAxisKey": "metric", "yAxisExpressions": [], "ignoreOutliers": False,
    "useGlobalXaxisKey": True, "useGlobalLineSmoothing": True,
}  # fmt: skip


class ViewError(ValueError):
    """A view cannot be written for these runs; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Logged:
    """What is logged of the runs that a view shows: names of their metrics, and their arms."""

    metrics: frozenset[str]
    arms: frozenset[str]


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
    columns = [
        name for each in view.columns for name in Chart(title="", kind="bar", metrics=(each,)).shown(logged.metrics)
    ]
    return {
        "searchFilter": f"tags.role = 'arm' and tags.adhoc = 'false' and tags.scale = '{scale}'",
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "selectedColumns": [f"tags.`{each}`" for each in ("arm", "seed", "git_commit")]
        + [f"metrics.`{each}`" for each in dict.fromkeys(columns)],
        "groupBy": {"aggregateFunction": "average", "groupByKeys": keys},
        "groupsExpanded": {} if several_recipes else {f"tag.arm.{arm}": False for arm in sorted(logged.arms)},
        "useGroupedValuesInCharts": True,
        "runsHiddenMode": "SHOW_ALL",
        "hideEmptyCharts": True,
        "isAccordionReordered": True,
        "compareRunCharts": charts,
        "compareRunSections": sections + _closed_sections(logged.metrics),
    }  # fmt: skip


def _charts_and_sections(view: View, metrics: Iterable[str]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    charts: list[dict[str, Any]] = []
    sections: list[dict[str, Any]] = []
    for number, section in enumerate(view.sections):
        section_id = f"{view.key}-{number}"
        found = [
            _chart(chart, chart.shown(metrics), f"{section_id}-{place}", section_id)
            for place, chart in enumerate(section.charts)
            if chart.shown(metrics)
        ]
        if found:
            charts += found
            sections.append(_section(section_id, section.sentence, is_open=True))
    return charts, sections


def _chart(chart: Chart, shown: Sequence[str], chart_id: str, section_id: str) -> dict[str, Any]:
    common = {
        "uuid": chart_id,
        "type": chart.kind.upper(),
        "runsCountToCompare": MOST_BARS,
        "metricSectionId": section_id,
        "deleted": False,
        "isGenerated": False,
        "displayName": chart.title,
        "metricKey": shown[0],
        "selectedMetricKeys": list(shown),
    }
    return common | (dict(LINE_DEFAULTS) if chart.kind == "line" else {})


def _section(section_id: str, name: str, *, is_open: bool) -> dict[str, Any]:
    return {
        "uuid": section_id, "name": name, "display": is_open, "isReordered": True, "deleted": False,
        "isGenerated": False,
    }  # fmt: skip


def _closed_sections(metrics: Iterable[str]) -> list[dict[str, Any]]:
    """Of all metrics by the parts before their last slash, which is where MLflow puts them of its own accord."""
    names = sorted({each.rpartition("/")[0] for each in metrics if "/" in each and not each.startswith("system/")})
    own = [*names, "Model metrics", "System metrics"]
    return [_section(f"other-{number}", name, is_open=False) for number, name in enumerate(own)]


def envelope(view: View, state: Mapping[str, Any], created_ms: int, updated_ms: int) -> str:
    """The tag's value.

    Raises:
        ViewError: it is longer than MLflow takes.
    """
    text = json.dumps(
        {
            "name": view.title,
            "createdAt": created_ms,
            "updatedAt": updated_ms,
            "state": json.dumps(state, separators=(",", ":")),
        }
    )
    if len(text) > MAX_EXPERIMENT_TAG_VAL_LENGTH:
        raise ViewError(
            f"the view {view.key!r} takes {len(text):,} characters and MLflow keeps {MAX_EXPERIMENT_TAG_VAL_LENGTH:,}; "
            "give its charts fewer metrics (analysis/dashboard/views.py)"
        )
    return text


def opened(text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(envelope, state) of a tag's value that was written here."""
    outer = json.loads(text)
    return outer, json.loads(outer["state"])


def link(base: str, view: View, experiment_ids: Sequence[str]) -> str:
    """Opens the view of these experiments' runs at the server `base`."""
    shown = f"viewStateShareKey={quote(view.key)}&compareRunsMode=CHART"
    if len(experiment_ids) == 1:
        return f"{base.rstrip('/')}{PAGE}/experiments/{experiment_ids[0]}/runs?{shown}"
    ids = quote(json.dumps(list(experiment_ids), separators=(",", ":")))
    return f"{base.rstrip('/')}{PAGE}/compare-experiments/s?experiments={ids}&{shown}"
