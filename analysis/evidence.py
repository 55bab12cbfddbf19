"""What the verdicts rest on, as CSV files that are read without a store."""

from __future__ import annotations

import csv
import hashlib
import io
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from analysis.eligibility import LeftOut
from analysis.ledger import ClaimTest, Ledger
from analysis.measurements import Measurement, interval_of_seeds
from analysis.runs import SCALES
from analysis.statistics import Interval

TESTS_FILE = "tests.csv"
SEEDS_FILE = "seeds.csv"
LEFT_OUT_FILE = "left_out.csv"
RELATIVE_ROUNDING = 1e-9
"""What another release of scipy may change in the last digits of an interval that is computed again."""


@dataclass(frozen=True, kw_only=True)
class EvidenceRow:
    """One test at one scale. seeds: how many the number is made of. run_id: of the experiment's own run."""

    claim: str
    test: str
    scale: str
    recipe: str
    source: str
    metric: str
    arm: str
    against: str
    minus: str
    unit: str
    value: float
    low: float
    high: float
    confirmed: str
    margin: float
    target: float
    seeds: int
    run_id: str
    commit: str
    claim_digest: str

    @property
    def key(self) -> tuple[str, str, str]:
        return self.claim, self.test, self.scale

    @property
    def interval(self) -> Interval:
        return Interval(value=self.value, low=self.low, high=self.high, seeds=self.seeds)


@dataclass(frozen=True, kw_only=True)
class SeedRow:
    """One seed of a test over arms; against is NaN where the arm is compared with nothing."""

    claim: str
    test: str
    scale: str
    seed: int
    own: float
    against: float
    run_id: str
    against_run_id: str
    commit: str

    @property
    def key(self) -> tuple[str, str, str]:
        return self.claim, self.test, self.scale

    @property
    def value(self) -> float:
        return self.own if math.isnan(self.against) else self.own - self.against


@dataclass(frozen=True, kw_only=True)
class LeftOutRow:
    """A run that does not count for some claims (their ids, separated by spaces), and why."""

    recipe: str
    scale: str
    run_id: str
    commit: str
    reason: str
    claims: str


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """All rows, in the order in which they are written."""

    tests: tuple[EvidenceRow, ...] = ()
    seeds: tuple[SeedRow, ...] = ()
    left_out: tuple[LeftOutRow, ...] = ()

    def intervals(self, claim: str) -> dict[str, dict[str, Interval]]:
        """{scale: {test: interval}} of one claim."""
        found: dict[str, dict[str, Interval]] = {}
        for row in self.tests:
            if row.claim == claim:
                found.setdefault(row.scale, {})[row.test] = row.interval
        return found

    def texts(self) -> dict[str, str]:
        """{file name: content}."""
        return {
            TESTS_FILE: _csv(EvidenceRow, self.tests),
            SEEDS_FILE: _csv(SeedRow, self.seeds),
            LEFT_OUT_FILE: _csv(LeftOutRow, self.left_out),
        }

    def checksums(self) -> dict[str, str]:
        """{file name: first characters of its SHA-256}, which the findings repeat."""
        return {name: hashlib.sha256(text.encode()).hexdigest()[:16] for name, text in self.texts().items()}


def evidence_of(measured: Iterable[Measurement], left_out: Iterable[LeftOut]) -> Evidence:
    """Rows of what was measured. Runs at the smallest scale are not listed: they are never meant as evidence."""
    tests: list[EvidenceRow] = []
    seeds: list[SeedRow] = []
    for each in measured:
        test, claim = each.test, each.claim
        target = math.nan if test.target is None else test.target
        row = EvidenceRow(
            claim=claim.id, test=test.name, scale=each.scale, recipe=test.recipe, source=test.source,
            metric=test.metric, arm=test.arm, against=test.against, minus=test.minus, unit=test.unit,
            value=each.interval.value, low=each.interval.low, high=each.interval.high, confirmed=test.confirmed,
            margin=float(test.margin), target=float(target), seeds=each.interval.seeds, run_id=each.run_id,
            commit=each.commit, claim_digest=claim.digest,
        )  # fmt: skip
        tests.append(row)
        for one in each.by_seed:
            of_seed = SeedRow(
                claim=claim.id, test=test.name, scale=each.scale, seed=one.seed, own=one.own, against=one.against,
                run_id=one.run_id, against_run_id=one.against_run_id, commit=one.commit,
            )  # fmt: skip
            seeds.append(of_seed)
    return _sorted(tests, seeds, _left_out_rows(left_out))


def joined(new: Evidence, old: Evidence, ledger: Ledger, judged: Collection[str] = ()) -> Evidence:
    """The new rows, and of the old ones those that another store gave: of tests that the new ones do not hold, at
    scales that they do not hold, of claims whose entry is still what it was.

    judged: runs of the new rows' store, counted or not. What an old row says of one of them is out of date.
    """
    digests = {claim.id: claim.digest for claim in ledger.claims}
    have, here = {row.key for row in new.tests}, set(judged)
    kept = [
        row
        for row in old.tests
        if row.key not in have and row.run_id not in here and digests.get(row.claim) == row.claim_digest
    ]
    keys = {row.key for row in kept}
    return _sorted(
        [*new.tests, *kept],
        [*new.seeds, *(row for row in old.seeds if row.key in keys)],
        [*new.left_out, *(row for row in old.left_out if row.run_id not in here)],
    )


def write_evidence(evidence: Evidence, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in evidence.texts().items():
        (folder / name).write_text(text, encoding="utf-8", newline="")


def read_evidence(folder: Path) -> Evidence:
    """What a folder holds; nothing where it, or a file of it, is missing. Raises ValueError for other columns."""
    return Evidence(
        tests=tuple(_rows(folder / TESTS_FILE, EvidenceRow)),
        seeds=tuple(_rows(folder / SEEDS_FILE, SeedRow)),
        left_out=tuple(_rows(folder / LEFT_OUT_FILE, LeftOutRow)),
    )


def faults_in(evidence: Evidence, ledger: Ledger) -> list[str]:
    """Where rows contradict the claims file, or one another; one sentence each."""
    faults: list[str] = []
    of_seeds: dict[tuple[str, str, str], list[SeedRow]] = {}
    for row in evidence.seeds:
        of_seeds.setdefault(row.key, []).append(row)
    keys = [row.key for row in evidence.tests]
    faults += [f"{_named(key)}: stands there more than once" for key in dict.fromkeys(keys) if keys.count(key) > 1]
    faults += [f"{_named(key)}: has seeds and no row of its own" for key in of_seeds if key not in keys]
    for row in evidence.tests:
        claim = ledger.claim(row.claim)
        if claim is None:
            faults.append(f"{_named(row.key)}: {row.claim} is no claim of the claims file")
        elif row.claim_digest != claim.digest:
            faults.append(
                f"{_named(row.key)}: measured for the entry {row.claim_digest}, and today's entry of {row.claim} is "
                f"{claim.digest}: a claim that was edited after its runs is untested"
            )
        elif row.test not in {test.name for test in claim.tests}:
            faults.append(f"{_named(row.key)}: {row.claim} has no such test")
        else:
            found = _faults_of_row(row, claim.test(row.test), of_seeds.get(row.key, []))
            faults += [f"{_named(row.key)}: {fault}" for fault in found]
    return faults


def faults_of_commits(evidence: Evidence, digests_at: Callable[[str], Mapping[str, str] | None]) -> list[str]:
    """Rows whose commit this repository does not have, or at whose commit the claim read otherwise."""
    faults: list[str] = []
    for row in evidence.tests:
        digests = digests_at(row.commit)
        if digests is None:
            faults.append(f"{_named(row.key)}: this repository has no commit {row.commit!r} that it could be a run of")
        elif digests.get(row.claim) != row.claim_digest:
            then = digests.get(row.claim, "not there")
            faults.append(f"{_named(row.key)}: at commit {row.commit} the entry of {row.claim} was {then}")
    return faults


def _faults_of_row(row: EvidenceRow, test: ClaimTest, seeds: Sequence[SeedRow]) -> list[str]:
    expected: dict[str, Any] = {
        "recipe": test.recipe, "source": test.source, "metric": test.metric, "arm": test.arm, "against": test.against,
        "minus": test.minus, "unit": test.unit, "confirmed": test.confirmed, "margin": float(test.margin),
    }  # fmt: skip
    faults = [
        f"{name} is {getattr(row, name)!r}, the claims file says {value!r}"
        for name, value in expected.items()
        if getattr(row, name) != value
    ]
    if not _same(row.target, math.nan if test.target is None else float(test.target)):
        faults.append(f"target is {row.target}, the claims file says {test.target}")
    if row.scale not in SCALES[1:]:
        faults.append(f"{row.scale!r} is no scale of evidence ({', '.join(SCALES[1:])})")
    if row.seeds < test.seeds:
        faults.append(f"made of {row.seeds} seeds, the test takes {test.seeds}")
    if not row.low <= row.value <= row.high:
        faults.append(f"{row.value} does not lie in its interval [{row.low}, {row.high}]")
    if (test.source == "arms") != bool(seeds):
        faults.append(f"a test of {test.source} has {len(seeds)} rows in {SEEDS_FILE}")
    elif seeds:
        again = interval_of_seeds(test, [each.value for each in sorted(seeds, key=lambda each: each.seed)])
        for name in ("value", "low", "high"):
            if not _same(getattr(row, name), getattr(again, name)):
                faults.append(f"{name} is {getattr(row, name)}, its seeds give {getattr(again, name)}")
        if row.seeds != again.seeds:
            faults.append(f"made of {row.seeds} seeds, {SEEDS_FILE} has {again.seeds}")
    return faults


def _left_out_rows(left_out: Iterable[LeftOut]) -> list[LeftOutRow]:
    """One row for each run and reason, with all claims that it concerns."""
    claims: dict[tuple[str, str, str, str, str], set[str]] = {}
    for each in left_out:
        if each.scale != SCALES[0]:
            # A reason that names the claim would make a row of each.
            reason = each.reason.replace(each.claim, "the claim")
            claims.setdefault((each.recipe, each.scale, each.run_id, each.commit, reason), set()).add(each.claim)
    return [
        LeftOutRow(recipe=recipe, scale=scale, run_id=run_id, commit=commit, reason=reason, claims=" ".join(sorted(of)))
        for (recipe, scale, run_id, commit, reason), of in claims.items()
    ]


def _sorted(tests: list[EvidenceRow], seeds: list[SeedRow], left_out: list[LeftOutRow]) -> Evidence:
    return Evidence(
        tests=tuple(sorted(tests, key=lambda row: row.key)),
        seeds=tuple(sorted(seeds, key=lambda row: (row.key, row.seed))),
        left_out=tuple(sorted(left_out, key=lambda row: (row.recipe, row.scale, row.run_id, row.reason))),
    )


def _named(key: tuple[str, str, str]) -> str:
    return f"{key[0]}, test {key[1]}, scale {key[2]}"


def _same(one: float, other: float) -> bool:
    return (math.isnan(one) and math.isnan(other)) or math.isclose(one, other, rel_tol=RELATIVE_ROUNDING)


Row = TypeVar("Row", EvidenceRow, SeedRow, LeftOutRow)


def _csv(kind: type[Any], rows: Sequence[Any]) -> str:
    """With `\\n` at the end of every line, and numbers in full: they are read back as they were."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [each.name for each in fields(kind)]
    writer.writerow(names)
    writer.writerows([_cell(getattr(row, name)) for name in names] for row in rows)
    return text.getvalue()


def _cell(value: object) -> str:
    return "" if isinstance(value, float) and math.isnan(value) else str(value)


def _rows(path: Path, kind: type[Row]) -> list[Row]:
    if not path.is_file():
        return []
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name} is no UTF-8 text ({error}); run make findings") from error
    with io.StringIO(text, newline="") as file:
        reader = csv.DictReader(file)
        expected = [each.name for each in fields(kind)]
        if reader.fieldnames is None or list(reader.fieldnames) != expected:
            raise ValueError(f"{path.name} has columns {reader.fieldnames}, expected {expected}; run make findings")
        return [kind(**_values(row, kind, f"{path.name}:{line}")) for line, row in enumerate(reader, 2)]


def _values(row: Mapping[str, str | None], kind: type[Any], where: str) -> dict[str, Any]:
    read: dict[str, Any] = {"str": str, "int": int, "float": lambda text: float(text) if text else math.nan}
    if None in row:
        raise ValueError(f"{where} has more cells than there are columns; run make findings")
    try:
        return {each.name: read[str(each.type)](row[each.name]) for each in fields(kind)}
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where} cannot be read ({error}); run make findings") from error
