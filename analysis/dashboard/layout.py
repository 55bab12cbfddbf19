"""What a comparison view is: sections named by sentences, charts of metrics, and which recipes' runs it shows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

ChartKind = Literal["bar", "line"]


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One chart. metrics: names or patterns (`recall_by_distance/*`), in the order shown.

    kind: "line" over the steps that a metric was logged at, "bar" of its last value.
    """

    title: str
    kind: ChartKind
    metrics: tuple[str, ...]

    def shown(self, logged: Iterable[str]) -> tuple[str, ...]:
        """The logged metrics that match, in the order of the patterns and then by name; each once."""
        names = sorted(logged)
        return tuple(dict.fromkeys(name for each in self.metrics for name in names if fnmatchcase(name, each)))


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


def bar(title: str, *metrics: str) -> Chart:
    return Chart(title=title, kind="bar", metrics=metrics)


def line(title: str, *metrics: str) -> Chart:
    return Chart(title=title, kind="line", metrics=metrics)


def section(sentence: str, *charts: Chart) -> Section:
    return Section(sentence=sentence, charts=charts)
