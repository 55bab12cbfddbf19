"""The rule from intervals to a verdict. No verdict is ever written by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from analysis.ledger import Claim, ClaimTest
from analysis.runs import SCALES
from analysis.statistics import Interval


class Outcome(StrEnum):
    """Of one test, or of all tests of one regime."""

    CONFIRMED = "confirmed"
    REFUTED = "refuted"
    UNDECIDED = "undecided"
    UNTESTED = "untested"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What follows for a claim at one scale. scale: empty where no run counts. text: as it is shown.

    outcome: UNDECIDED also for a claim that holds in some regimes only (`holds_when` then names them).
    """

    claim: str
    scale: str
    outcome: Outcome
    text: str
    holds_when: tuple[str, ...] = ()
    fails_when: tuple[str, ...] = ()


def outcome_of(test: ClaimTest, interval: Interval | None) -> Outcome:
    """Where the whole interval lies. A margin that it touches or straddles decides nothing; nor does an end that is
    not known."""
    if interval is None:
        return Outcome.UNTESTED
    if not interval.is_known:
        return Outcome.UNDECIDED
    if test.confirmed == "within":
        assert test.target is not None
        bottom, top = test.target - test.margin, test.target + test.margin
        is_confirmed = bottom <= interval.low and interval.high <= top
        is_refuted = interval.high < bottom or interval.low > top
    else:
        is_above, is_below = interval.low > test.margin, interval.high < test.margin
        is_confirmed, is_refuted = (is_above, is_below) if test.confirmed == "above" else (is_below, is_above)
    return Outcome.CONFIRMED if is_confirmed else Outcome.REFUTED if is_refuted else Outcome.UNDECIDED


def regimes(claim: Claim, outcomes: Mapping[str, Outcome]) -> dict[str, Outcome]:
    """{when: outcome}. A claim holds in a regime where all its tests there are confirmed; one refuted test is enough to
    refute it there.

    outcomes: by the test's name.
    """
    found: dict[str, list[Outcome]] = {}
    for test in claim.tests:
        found.setdefault(test.when, []).append(outcomes.get(test.name, Outcome.UNTESTED))
    return {when: _all_needed(each) for when, each in found.items()}


def _all_needed(outcomes: Sequence[Outcome]) -> Outcome:
    if Outcome.REFUTED in outcomes:
        return Outcome.REFUTED
    kinds = set(outcomes)
    return outcomes[0] if len(kinds) == 1 else Outcome.UNDECIDED


def verdict_at(claim: Claim, scale: str, intervals: Mapping[str, Interval]) -> Verdict:
    """The verdict of one scale. intervals: by the test's name, those that runs of this scale gave; one at least."""
    assert intervals, "a scale without any interval has no verdict"
    outcomes = {test.name: outcome_of(test, intervals.get(test.name)) for test in claim.tests}
    by_regime = regimes(claim, outcomes)
    holds = tuple(when for when, outcome in by_regime.items() if outcome == Outcome.CONFIRMED)
    fails = tuple(when for when, outcome in by_regime.items() if outcome == Outcome.REFUTED)
    if holds and fails:
        is_all = len(holds) + len(fails) == len(by_regime)
        still_open = "" if is_all else f" (undecided in {len(by_regime) - len(holds) - len(fails)} of {len(by_regime)})"
        outcome = Outcome.UNDECIDED
        text = f"holds {'only ' if is_all else ''}when {'; or when '.join(holds)}{still_open}"
    elif len(holds) == len(by_regime):
        outcome, text = Outcome.CONFIRMED, "confirmed"
    elif len(fails) == len(by_regime):
        outcome, text = Outcome.REFUTED, "refuted"
    else:
        outcome, text = Outcome.UNDECIDED, f"undecided ({_counted(list(outcomes.values()))})"
    return Verdict(claim=claim.id, scale=scale, outcome=outcome, text=text, holds_when=holds, fails_when=fails)


def verdicts_of(claim: Claim, intervals: Mapping[str, Mapping[str, Interval]]) -> list[Verdict]:
    """One verdict for every scale that has runs which count, the largest first; one that says `untested`, or what it
    would need, where no scale has any. A verdict of one scale never stands for another.

    intervals: scale -> test name -> interval.
    """
    scales = sorted((scale for scale, found in intervals.items() if found), key=SCALES.index, reverse=True)
    if scales:
        return [verdict_at(claim, scale, intervals[scale]) for scale in scales]
    needs = tuple(dict.fromkeys(test.needs for test in claim.tests))
    text = f"needs {' and '.join(needs)}" if all(needs) else "untested"
    return [Verdict(claim=claim.id, scale="", outcome=Outcome.UNTESTED, text=text)]


def _counted(outcomes: Sequence[Outcome]) -> str:
    """`2 confirmed, 1 undecided of 3 tests`"""
    shown = [f"{outcomes.count(kind)} {kind}" for kind in Outcome if kind in outcomes]
    return f"{', '.join(shown)} of {len(outcomes)} {'test' if len(outcomes) == 1 else 'tests'}"
