"""What a comparison view is: sections named by sentences, charts of metrics, and which recipes' runs it shows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

ChartKind = Literal["bar", "line"]


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Charts of a kind, one for each metric. metrics: names or patterns (`recall_by_distance/*`), in the order shown.

    kind: "line" over the steps that a metric was logged at, "bar" of its last value; both coloured by arm.
    together: all of them as one chart. MLflow heads a chart by its metrics' names, and nothing else.
    """

    kind: ChartKind
    metrics: tuple[str, ...]
    together: bool = False

    def shown(self, logged: Iterable[str]) -> list[tuple[str, ...]]:
        """The metrics of each chart."""
        names = matching(self.metrics, logged)
        return [names] if self.together and names else [(name,) for name in names]


@dataclass(frozen=True, kw_only=True)
class Section:
    """Charts under one sentence."""

    sentence: str
    charts: tuple[Chart, ...]


@dataclass(frozen=True, kw_only=True)
class View:
    """A prepared comparison. key: its name in links and tags. recipes: names or patterns of the experiments shown.

    columns: metrics (names or patterns) that the table of runs shows beside arm, seed and commit.
    """

    key: str
    title: str
    recipes: tuple[str, ...]
    sections: tuple[Section, ...]
    columns: tuple[str, ...]

    def shows(self, recipe: str) -> bool:
        return any(fnmatchcase(recipe, each) for each in self.recipes)


def matching(patterns: Iterable[str], logged: Iterable[str]) -> tuple[str, ...]:
    """The logged metrics that match, in the order of the patterns and then by name; each once."""
    names = sorted(logged)
    return tuple(dict.fromkeys(name for each in patterns for name in names if fnmatchcase(name, each)))


def bars(*metrics: str) -> Chart:
    return Chart(kind="bar", metrics=metrics)


def lines(*metrics: str) -> Chart:
    return Chart(kind="line", metrics=metrics)


def lines_together(*metrics: str) -> Chart:
    return Chart(kind="line", metrics=metrics, together=True)


def section(sentence: str, *charts: Chart) -> Section:
    return Section(sentence=sentence, charts=charts)
