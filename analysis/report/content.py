"""What the page says, collected from claims, evidence and the store, before it is laid out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from analysis.evidence import Evidence
from analysis.findings import rule, with_interval
from analysis.ledger import RATED_COMMANDS, Claim, Ledger
from analysis.pictures.drawing import Picture
from analysis.pictures.finished import FinishedRun, NothingToShowError, command, newest_finished
from analysis.report.sections import SECTIONS, Section
from analysis.report.sound import Sample, SoundBudget, samples_of
from analysis.report.strip import strip
from analysis.runs import SCALES
from analysis.store import Store
from analysis.verdicts import Verdict, verdicts_of

LOCAL_SERVER = "http://127.0.0.1:5000"
"""Where `make mlflow-ui` shows a local store."""


@dataclass(frozen=True, kw_only=True)
class MeasuredTest:
    """One test of a claim at the verdict's scale. run_address: empty where the run is in another store."""

    name: str
    found: str
    rule: str
    strip: str
    run_id: str
    run_address: str


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A claim with its verdict at the largest scale that has one; others: those of smaller scales, in words."""

    claim: Claim
    verdict: Verdict
    others: tuple[str, ...]
    tests: tuple[MeasuredTest, ...]
    commands: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ShownRun:
    """A recipe's newest finished run on the page. notes: why a picture could not be drawn."""

    section: Section
    found: FinishedRun
    address: str
    pictures: tuple[Picture, ...]
    samples: tuple[Sample, ...]
    notes: tuple[str, ...]
    table: str


@dataclass(frozen=True, kw_only=True)
class Content:
    """Everything on the page. missing: a sentence for each recipe without a finished run."""

    findings: tuple[Finding, ...]
    waiting: tuple[Finding, ...]
    counted: tuple[tuple[str, int], ...]
    runs: tuple[ShownRun, ...]
    missing: tuple[str, ...]
    is_local: bool
    has_store: bool


def collect(ledger: Ledger, evidence: Evidence, store: Store | None, tell: Callable[[str], None]) -> Content:
    """tell: is given a line for each recipe. store: None for a page of the evidence alone."""
    addresses = Addresses(store)
    every = [_finding(ledger, claim, evidence, addresses) for claim in ledger.claims]
    tested = tuple(finding for finding in every if finding.verdict.scale)
    runs: list[ShownRun] = []
    missing: list[str] = []
    budget = SoundBudget()
    for section in SECTIONS if store else ():
        assert store is not None
        try:
            found = newest_finished(store, section.recipe)
        except NothingToShowError:
            missing.append(f"{section.recipe}: {command(section.recipe, SCALES[1])}")
            continue
        tell(found.caption)
        runs.append(_shown_run(section, found, addresses, budget))
    return Content(
        findings=tested,
        waiting=tuple(finding for finding in every if not finding.verdict.scale),
        counted=tuple(Counter(_kind(finding) for finding in every).most_common()),
        runs=tuple(runs),
        missing=tuple(missing),
        is_local=store is not None and not store.uri.startswith("http"),
        has_store=store is not None,
    )


class Addresses:
    """Where the MLflow server shows a run of the store."""

    def __init__(self, store: Store | None) -> None:
        self._server = "" if store is None else store.uri.rstrip("/") if store.uri.startswith("http") else LOCAL_SERVER
        self._experiments = {} if store is None else store.recipes()
        self._runs = {} if store is None else {run.run_id: run.experiment for run in store.runs()}

    def of(self, run_id: str) -> str:
        """Empty for a run that the store does not have."""
        if run_id not in self._runs:
            return ""
        return f"{self._server}/#/experiments/{self._experiments[self._runs[run_id]]}/runs/{run_id}"


def _finding(ledger: Ledger, claim: Claim, evidence: Evidence, addresses: Addresses) -> Finding:
    found = verdicts_of(claim, evidence.intervals(claim.id))
    verdict = found[0]
    by_key = {row.key: row for row in evidence.tests}
    tests: list[MeasuredTest] = []
    for test in claim.tests:
        row = by_key.get((claim.id, test.name, verdict.scale))
        if row is not None:
            tests.append(
                MeasuredTest(
                    name=test.name, found=with_interval(row), rule=f"{rule(test)}?", strip=strip(test, row.interval),
                    run_id=row.run_id, run_address=addresses.of(row.run_id),
                )
            )  # fmt: skip
    written = [recipe for recipe in claim.recipes if recipe not in (*ledger.planned_recipes, *ledger.rated_recipes)]
    asking = RATED_COMMANDS if set(claim.recipes) & set(ledger.rated_recipes) else ()
    return Finding(
        claim=claim, verdict=verdict, others=tuple(f"{each.scale}: {each.text}" for each in found[1:]),
        tests=tuple(tests), commands=(*(command(recipe, SCALES[1]) for recipe in written), *asking),
    )  # fmt: skip


def _kind(finding: Finding) -> str:
    """`confirmed`, `holds only when ...` and so on, as they are counted at the top."""
    if finding.verdict.holds_when and finding.verdict.fails_when:
        return "hold in some regimes only"
    return str(finding.verdict.outcome)


def _shown_run(section: Section, found: FinishedRun, addresses: Addresses, budget: SoundBudget) -> ShownRun:
    pictures: list[Picture] = []
    notes: list[str] = []
    for shown in section.pictures:
        try:
            pictures.append(shown.draw(found, **shown.options))
        except NothingToShowError as nothing:
            notes.append(str(nothing))
    return ShownRun(
        section=section, found=found, address=addresses.of(found.run.parent.run_id), pictures=tuple(pictures),
        samples=tuple(samples_of(found, budget)), notes=tuple(notes),
        table=found.text("table.txt") if "table.txt" in found.files else "",
    )  # fmt: skip
