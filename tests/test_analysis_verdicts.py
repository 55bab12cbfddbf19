"""From intervals to verdicts, and from numbers of seeds to intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy
import pytest
from analysis_stores import CLAIMS

from analysis.ledger import Claim, ClaimTest, parse_ledger
from analysis.statistics import (
    Interval,
    bootstrap_interval,
    exact_interval,
    paired_differences,
    share_interval,
    t_interval,
)
from analysis.verdicts import Outcome, outcome_of, verdict_at, verdicts_of

LEDGER = parse_ledger(CLAIMS)
GROWS, _, RING, LISTENERS = LEDGER.claims


def interval(low: float, high: float) -> Interval:
    return Interval(value=(low + high) / 2, low=low, high=high, seeds=3)


def a_test(name: str, when: str) -> ClaimTest:
    return ClaimTest(
        name=name, recipe="drift", metric=name, unit="nats", margin=0.0, why="a sign", when=when, source="experiment",
        confirmed="above",
    )  # fmt: skip


def a_claim(tests: Sequence[ClaimTest]) -> Claim:
    return Claim(id="X", statement="x", contested="x", scale="cpu", tests=tuple(tests), digest="x")


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.06, 0.08, Outcome.CONFIRMED),
        (0.01, 0.04, Outcome.REFUTED),
        (0.04, 0.06, Outcome.UNDECIDED),
        (0.05, 0.06, Outcome.UNDECIDED),  # it touches the margin
        (math.nan, 0.08, Outcome.UNDECIDED),
        (0.06, math.inf, Outcome.UNDECIDED),
    ],
)
def test_the_whole_interval_must_lie_on_one_side(low: float, high: float, expected: Outcome) -> None:
    assert outcome_of(GROWS.tests[0], interval(low, high)) == expected


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (2999.6, 3000.4, Outcome.CONFIRMED),
        (3000.6, 3001.0, Outcome.REFUTED),
        (2000.0, 2001.0, Outcome.REFUTED),
        (3000.4, 3000.6, Outcome.UNDECIDED),
        (2000.0, 4000.0, Outcome.UNDECIDED),
    ],
)
def test_within_is_confirmed_inside_and_refuted_on_either_side(low: float, high: float, expected: Outcome) -> None:
    assert outcome_of(RING.tests[0], interval(low, high)) == expected


YES, NO, OPEN = interval(1, 2), interval(-2, -1), interval(-1, 1)


@pytest.mark.parametrize(
    ("intervals", "expected"),
    [
        ({"a": YES, "b": YES, "c": YES}, "confirmed"),
        ({"a": NO, "b": NO, "c": NO}, "refuted"),
        ({"a": YES, "b": YES, "c": NO}, "holds only when early"),
        ({"a": NO, "b": YES, "c": YES}, "holds only when late"),  # both tests of a regime are needed
        ({"a": NO, "b": YES, "c": NO}, "refuted"),
        ({"a": YES, "b": OPEN, "c": YES}, "undecided (2 confirmed, 1 undecided of 3 tests)"),
        ({"a": NO, "b": NO, "c": OPEN}, "undecided (2 refuted, 1 undecided of 3 tests)"),
        ({"a": YES, "b": YES}, "undecided (2 confirmed, 1 untested of 3 tests)"),
        ({"c": NO}, "undecided (1 refuted, 2 untested of 3 tests)"),
    ],
)
def test_the_verdict_of_several_tests(intervals: dict[str, Interval], expected: str) -> None:
    claim = a_claim([a_test("a", "early"), a_test("b", "early"), a_test("c", "late")])
    assert verdict_at(claim, "cpu", intervals).text == expected


@pytest.mark.parametrize("third", [{}, {"c": OPEN}])
def test_only_is_said_where_every_regime_is_decided(third: dict[str, Interval]) -> None:
    claim = a_claim([a_test("a", "early"), a_test("b", "late"), a_test("c", "always")])
    verdict = verdict_at(claim, "cpu", {"a": YES, "b": NO} | third)
    assert verdict.text == "holds when early (undecided in 1 of 3)"
    assert verdict_at(claim, "cpu", {"a": YES, "b": NO, "c": NO}).text == "holds only when early"


def test_the_largest_scale_comes_first_and_no_scale_lends_its_verdict_to_another() -> None:
    found = verdicts_of(GROWS, {"cpu": {"growth": interval(0.1, 0.2)}, "gpu": {"growth": interval(0.0, 0.1)}})
    assert [(each.scale, each.outcome) for each in found] == [
        ("gpu", Outcome.UNDECIDED),
        ("cpu", Outcome.CONFIRMED),
    ]
    # At the larger scale one test is missing, which the smaller scale's result does not fill.
    split = verdicts_of(RING, {"cpu": {"short": interval(3000, 3000), "long": interval(3000, 3000)},
                               "gpu": {"short": interval(3000, 3000)}})  # fmt: skip
    assert [each.text for each in split] == ["undecided (1 confirmed, 1 untested of 2 tests)", "confirmed"]


def test_without_runs_a_claim_is_untested_or_says_what_it_needs() -> None:
    assert [each.text for each in verdicts_of(GROWS, {})] == ["untested"]
    assert [each.text for each in verdicts_of(LISTENERS, {})] == ["needs ratings"]


def test_students_interval_of_three_seeds_is_the_textbooks() -> None:
    found = t_interval([1.0, 2.0, 4.0])
    half = 4.302652729911275 * math.sqrt(7 / 3) / math.sqrt(3)  # t(0.975, 2), the sample's deviation, root of n
    assert (found.value, found.seeds) == (pytest.approx(7 / 3), 3)
    assert (found.low, found.high) == (pytest.approx(7 / 3 - half), pytest.approx(7 / 3 + half))
    assert math.isnan(t_interval([1.0]).low) and not t_interval([1.0]).is_known


def test_differences_are_taken_seed_by_seed() -> None:
    assert paired_differences({0: 1.0, 3: 5.0, 2: 2.0}, {3: 1.0, 2: 4.0, 7: 0.0}) == {2: -2.0, 3: 4.0}


def test_an_exact_number_that_differs_from_run_to_run_shows_it() -> None:
    found = exact_interval([3.0, 5.0, 4.0])
    assert (found.value, found.low, found.high, found.seeds) == (4.0, 3.0, 5.0, 3)


def test_the_exact_interval_of_a_share_is_known_in_closed_form_where_all_agree() -> None:
    found = share_interval(6, 6)
    assert (found.value, found.high) == (1.0, 1.0) and found.low == pytest.approx(0.025 ** (1 / 6))
    assert (share_interval(0, 0).low, share_interval(0, 0).high) == (0.0, 1.0)
    with pytest.raises(ValueError, match="7 of 6 is no share"):
        share_interval(7, 6)


def test_the_bootstrap_agrees_with_student_on_many_normal_values_and_repeats() -> None:
    values = numpy.random.default_rng(3).normal(2.0, 1.0, 400).tolist()
    bootstrap, student = bootstrap_interval(values), t_interval(values)
    assert bootstrap == bootstrap_interval(values)
    assert bootstrap.low == pytest.approx(student.low, abs=0.01) and bootstrap.high == pytest.approx(
        student.high, abs=0.01
    )
    assert math.isnan(bootstrap_interval([1.0]).low)
