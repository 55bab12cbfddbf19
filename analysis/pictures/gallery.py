"""What a notebook calls: the store, the newest finished run of each recipe, and a picture or a clear word instead."""

from __future__ import annotations

import html
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas

from analysis.evidence import Evidence, read_evidence
from analysis.findings import Places
from analysis.ledger import Ledger, load_ledger
from analysis.pictures.claims import claim_picture, tests_table, verdicts_table, what_to_run
from analysis.pictures.drawing import Picture
from analysis.pictures.finished import FinishedRun, NothingToShowError, newest_finished
from analysis.store import Store, default_uri, open_store
from analysis.tables import Table

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Notice:
    """What stands where a picture would: why there is none, and the command that makes one."""

    text: str

    def __str__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return f'<p style="border-left:3px solid #E69F00;padding-left:8px">{html.escape(self.text)}</p>'


@dataclass(frozen=True, kw_only=True)
class Printed:
    """A text as a recipe printed it, of which run."""

    text: str
    caption: str

    def _repr_html_(self) -> str:
        text, caption = html.escape(self.text), html.escape(self.caption)
        return f'<pre style="overflow-x:auto">{text}</pre><p><small>{caption}</small></p>'


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Shows finished runs. scale: the only one that is looked at; the largest that a recipe has runs of where None."""

    store: Store
    scale: str | None
    _found: dict[str, FinishedRun] = field(default_factory=dict, repr=False)

    def newest(self, recipe: str) -> FinishedRun:
        """Raises NothingToShowError where no run of the recipe is finished."""
        if recipe not in self._found:
            self._found[recipe] = newest_finished(self.store, recipe, self.scale)
        return self._found[recipe]

    def show(self, recipe: str, picture: Callable[..., Picture], **options: Any) -> Picture | Notice:
        """`picture(newest finished run of the recipe, **options)`, or a notice that says what to run first."""
        try:
            return picture(self.newest(recipe), **options)
        except NothingToShowError as nothing:
            return Notice(str(nothing))

    def printed(self, recipe: str) -> Printed | Notice:
        """The table that the recipe's newest finished run printed at its end."""
        try:
            found = self.newest(recipe)
        except NothingToShowError as nothing:
            return Notice(str(nothing))
        return Printed(text=found.text("table.txt"), caption=found.caption)

    def overview(self, recipes: list[str]) -> Table:
        """A row for every recipe: the newest finished run, or the command that makes one."""
        rows: dict[str, str] = {}
        for recipe in recipes:
            try:
                rows[recipe] = self.newest(recipe).caption
            except NothingToShowError as nothing:
                rows[recipe] = str(nothing)
        return pandas.DataFrame({"what is shown of it": rows}).rename_axis("recipe")


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Shows claims and verdicts, from `experiments/claims.toml` and `evidence/*.csv` alone."""

    ledger: Ledger
    evidence: Evidence

    def verdicts(self) -> Table:
        return verdicts_table(self.ledger, self.evidence)

    def tests(self) -> Table:
        return tests_table(self.ledger, self.evidence)

    def what_to_run(self) -> Table:
        return what_to_run(self.ledger, self.evidence)

    def claim(self, claim_id: str) -> Picture | Notice:
        """The intervals of a claim's tests beside its margin."""
        try:
            return claim_picture(self.ledger, self.evidence, claim_id)
        except NothingToShowError as nothing:
            return Notice(str(nothing))


def open_gallery(store: str | None = None, scale: str | None = None) -> Gallery:
    """The gallery of a store: `store`, else MLFLOW_TRACKING_URI, else runs/mlflow.db of this repository.

    Raises:
        StoreError: the store cannot be read.
    """
    pandas.set_option("display.max_colwidth", None)
    return Gallery(store=open_store(store or default_uri(ROOT)), scale=scale)


def open_evidence(root: Path = ROOT) -> Findings:
    """Claims and evidence of the repository at `root`.

    Raises:
        ValueError: a file is missing or not as it should be.
    """
    pandas.set_option("display.max_colwidth", None)
    places = Places(root=root)
    return Findings(ledger=load_ledger(places.claims), evidence=read_evidence(places.evidence))
