"""Claims and their tests, read from `experiments/claims.toml` and checked."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from analysis.runs import SCALES

CLAIMS_FILE = "experiments/claims.toml"
DIGEST_CHARACTERS = 12
RATED_COMMANDS = ('make listening-test RUNS="run run"', "make listening-results")
"""What asks people, and what logs what they said, in the place of a recipe's command."""
SOURCES = ("experiment", "arm", "arms")
SIDES = ("above", "below", "within")
NOT_NEGATIVE = (
    "bytes", "positions", "streams", "lines", "files", "s", "ms", "min", "h", "starts/s", "times", "count",
    "relative difference", "largest |W1|",
)  # fmt: skip
"""Units of quantities that are never below 0: a margin at or below 0 would let a test come out one way only."""


@dataclass(frozen=True, kw_only=True)
class ClaimTest:
    """One interval against one margin; analysis/README.md says what each field means.

    confirmed: where the whole interval must lie: "above" or "below" the margin, or "within" the margin of the target.
    """

    name: str
    recipe: str
    metric: str
    unit: str
    margin: float
    why: str
    when: str
    source: Literal["experiment", "arm", "arms"]
    confirmed: Literal["above", "below", "within"]
    target: float | None = None
    metric_low: str = ""
    metric_high: str = ""
    exact: bool = False
    relative_error: float = 0.0
    arm: str = ""
    against: str = ""
    minus: str = ""
    seeds: int = 1
    needs: str = ""

    @property
    def ends(self) -> tuple[str, str]:
        """Names of the metrics that hold the interval's ends."""
        return self.metric_low or f"{self.metric}_low", self.metric_high or f"{self.metric}_high"

    @property
    def what(self) -> str:
        """The number in words: metric, arm, and what it is compared with."""
        own = f"{self.metric} - {self.minus}" if self.minus else self.metric
        of = f" of {self.arm}" if self.arm else ""
        return f"{own}{of} - that of {self.against}" if self.against else f"{own}{of}"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One claim with what would settle it. scale: the one asked for. digest: changes with any word of the entry."""

    id: str
    statement: str
    contested: str
    scale: str
    tests: tuple[ClaimTest, ...]
    digest: str

    @property
    def recipes(self) -> tuple[str, ...]:
        """Recipes that its tests read, in their order."""
        return tuple(dict.fromkeys(test.recipe for test in self.tests))

    def test(self, name: str) -> ClaimTest:
        """Raises KeyError for a name that is none."""
        return {test.name: test for test in self.tests}[name]


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """All claims, by id; the recipes that are named in them but not written yet; and those that people answer."""

    claims: tuple[Claim, ...]
    planned_recipes: tuple[str, ...]
    rated_recipes: tuple[str, ...] = ()

    def claim(self, claim_id: str) -> Claim | None:
        """None where there is no such claim."""
        return {claim.id: claim for claim in self.claims}.get(claim_id)


def load_ledger(path: Path) -> Ledger:
    """Every claim of the file. Raises ValueError for a missing file, or an entry that is not as it should be."""
    if not path.is_file():
        raise ValueError(f"there is no file of claims at {path}; it belongs to the repository, take it from there")
    return parse_ledger(path.read_text(encoding="utf-8"), str(path))


def parse_ledger(text: str, name: str = CLAIMS_FILE) -> Ledger:
    """Every claim of the text of a claims file called `name`. Raises ValueError as `load_ledger` does."""
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{name} is no TOML: {error}") from error
    _only(content, ("planned_recipes", "rated_recipes", "claim"), name)
    entries = content.get("claim")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{name} holds no tables [[claim]]; it has {', '.join(content) or 'nothing'}")
    claims = tuple(_claim(entry, f"{name}: {entry.get('id', 'a claim without id')}") for entry in entries)
    ids = [claim.id for claim in claims]
    if ids != sorted(set(ids)):
        raise ValueError(f"{name}: claims must stand by rising id, each once; they stand as {', '.join(ids)}")
    return Ledger(
        claims=claims, planned_recipes=tuple(content.get("planned_recipes", ())),
        rated_recipes=tuple(content.get("rated_recipes", ())),
    )  # fmt: skip


def digests_in(text: str) -> dict[str, str]:
    """{claim id: digest} of a claims file of any date, whose entries today's checks might refuse."""
    try:
        entries = tomllib.loads(text).get("claim", [])
    except tomllib.TOMLDecodeError:
        return {}
    return {entry["id"]: digest_of(entry) for entry in entries if "id" in entry}


def digest_of(entry: Mapping[str, Any]) -> str:
    """Of everything in a claim's entry, whatever the order of its keys, the spaces and the comments around it."""
    plain = json.dumps(entry, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(plain.encode()).hexdigest()[:DIGEST_CHARACTERS]


def _claim(entry: Mapping[str, Any], where: str) -> Claim:
    _only(entry, ("id", "statement", "contested", "scale", "each_test", "test"), where)
    _required(entry, ("id", "statement", "contested", "scale", "test"), where)
    if entry["scale"] not in SCALES[1:]:
        raise ValueError(f"{where}: scale is {entry['scale']!r}; ask for one of {', '.join(SCALES[1:])}")
    shared = entry.get("each_test", {})
    tests = tuple(_test(shared | each, f"{where}, test {each.get('name', 'without name')}") for each in entry["test"])
    names = [test.name for test in tests]
    if not tests or len(set(names)) != len(names):
        raise ValueError(f"{where}: a claim has one test or more, each with a name of its own; it has {names}")
    return Claim(
        id=entry["id"], statement=entry["statement"], contested=entry["contested"], scale=entry["scale"], tests=tests,
        digest=digest_of(entry),
    )  # fmt: skip


def _test(entry: Mapping[str, Any], where: str) -> ClaimTest:
    every = fields(ClaimTest)
    _only(entry, [each.name for each in every], where)
    _required(entry, [each.name for each in every if each.default is MISSING], where)
    for each in every:
        if each.name not in entry:
            continue
        kinds = {"float": (int, float), "float | None": (int, float), "bool": (bool,), "int": (int,)}
        kind = kinds.get(str(each.type), (str,))
        if not isinstance(entry[each.name], kind) or (bool not in kind and isinstance(entry[each.name], bool)):
            raise ValueError(f"{where}: {each.name} is {entry[each.name]!r}; expected {each.type}")
    test = ClaimTest(**entry)
    for fault in _faults(test):
        raise ValueError(f"{where}: {fault}")
    return test


def _faults(test: ClaimTest) -> list[str]:
    """What keeps a test from meaning something, or from coming out both ways."""
    both_ways = "a test that can come out one way only settles nothing"
    is_within = test.confirmed == "within"
    has_ends = bool(test.metric_low or test.metric_high)
    rules = (
        (test.source not in SOURCES, f"source is {test.source!r}; expected one of {', '.join(SOURCES)}"),
        (test.confirmed not in SIDES, f"confirmed is {test.confirmed!r}; expected one of {', '.join(SIDES)}"),
        (is_within != (test.target is not None), "`within` needs a target, and nothing else has one"),
        (is_within and test.margin <= 0, f"within {test.margin} of the target is nothing; {both_ways}"),
        (
            test.unit == "share" and not is_within and not 0 < test.margin < 1,
            f"a share lies between 0 and 1, so a margin of {test.margin} is never passed; {both_ways}",
        ),
        (
            test.unit in NOT_NEGATIVE and not test.against and not test.minus and not is_within and test.margin <= 0,
            f"{test.unit} are never below 0, so a margin of {test.margin} is never passed; {both_ways}",
        ),
        ((test.source == "experiment") == bool(test.arm), "arm is for tests of an arm or arms, which need one"),
        (bool(test.against or test.minus) and test.source != "arms", "against and minus are for tests of arms"),
        (has_ends and (test.source == "arms" or test.exact), "an interval that is computed or exact names no metrics"),
        (test.exact and test.relative_error > 0, "a number is exact or has a relative error, not both"),
        (test.relative_error > 0 and test.source == "arms", "the interval of arms comes from their seeds"),
        (not 0 <= test.relative_error < 1, f"relative_error is {test.relative_error}; expected 0 to 1"),
        (test.source == "arms" and not test.exact and test.seeds < 3, "an interval over seeds takes 3 of them or more"),
        (test.seeds < 1, f"seeds is {test.seeds}; expected 1 or more"),
        (not test.why or not test.when, "why (the margin's argument) and when (the regime) must say something"),
    )  # fmt: skip
    return [message for is_wrong, message in rules if is_wrong]


def _only(entry: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    unknown = sorted(set(entry) - set(known))
    if unknown:
        raise ValueError(f"{where} has no field {', '.join(unknown)}; it has {', '.join(known)}")


def _required(entry: Mapping[str, Any], needed: Sequence[str], where: str) -> None:
    missing = [name for name in needed if name not in entry]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}")
