"""The claims file says what would settle what, and every claim in it can come out either way."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from analysis_stores import CLAIMS

from analysis.eligibility import digests_from_git, has_whole_history
from analysis.findings import Places, differences
from analysis.ledger import Claim, ClaimTest, digest_of, digests_in, load_ledger, parse_ledger
from analysis.statistics import Interval
from analysis.verdicts import Outcome, verdict_at

ROOT = Path(__file__).parents[1]
LEDGER = load_ledger(ROOT / "experiments" / "claims.toml")


def planted(test: ClaimTest, *, confirms: bool) -> Interval:
    """An interval that lies wholly where the test is confirmed, or wholly where it is refuted, and is possible: shares
    stay between 0 and 1, and what is never negative is not."""
    size = 0.1 * abs(test.margin) or 1.0
    if test.confirmed == "within":
        assert test.target is not None
        middle = test.target if confirms else test.target + 2 * test.margin
        size = 0.1 * test.margin
    elif test.unit == "share":
        goes_up = (test.confirmed == "above") == confirms
        middle, size = (1 - 0.1 * (1 - test.margin), 0.05 * (1 - test.margin)) if goes_up else (test.margin / 2, 1e-3)
    else:
        goes_up = (test.confirmed == "above") == confirms
        middle = test.margin + 2 * size if goes_up else test.margin - 2 * size
    return Interval(value=middle, low=middle - size, high=middle + size, seeds=max(test.seeds, 3))


@pytest.mark.parametrize("claim", LEDGER.claims, ids=lambda claim: claim.id)
def test_every_claim_can_be_confirmed_and_refuted(claim: Claim) -> None:
    for confirms, outcome in ((True, Outcome.CONFIRMED), (False, Outcome.REFUTED)):
        intervals = {test.name: planted(test, confirms=confirms) for test in claim.tests}
        for test in claim.tests:
            found = intervals[test.name]
            if test.unit == "share":
                assert 0 <= found.low <= found.high <= 1, test.name
        assert verdict_at(claim, "cpu", intervals).outcome == outcome


@pytest.mark.parametrize("claim", [c for c in LEDGER.claims if len({t.when for t in c.tests}) > 1], ids=lambda c: c.id)
def test_a_claim_of_several_regimes_can_hold_in_one_alone(claim: Claim) -> None:
    first = claim.tests[0].when
    intervals = {test.name: planted(test, confirms=test.when == first) for test in claim.tests}
    assert verdict_at(claim, "cpu", intervals).text == f"holds only when {first}"


def test_all_claims_are_there() -> None:
    assert [claim.id for claim in LEDGER.claims] == [f"C{number:02d}" for number in range(1, 33)]


def test_every_recipe_that_is_named_exists_or_is_said_to_be_planned() -> None:
    named = {recipe for claim in LEDGER.claims for recipe in claim.recipes}
    written = {path.stem.replace("_", "-") for path in (ROOT / "experiments" / "recipes").glob("[a-z]*.py")}
    assert named - written == {*LEDGER.planned_recipes, *LEDGER.rated_recipes}, (
        "planned_recipes in experiments/claims.toml must name just the recipes that are not written yet; after a "
        "change run: python -m analysis findings --from-evidence"
    )


def test_arms_and_views_that_tests_read_are_in_their_recipes() -> None:
    """A metric of an arm that was renamed would leave its claim untested for ever."""
    from experiments.recipes import RECIPES

    for claim in LEDGER.claims:
        for test in claim.tests:
            if test.recipe in RECIPES:
                config = RECIPES[test.recipe].configure(scale="cpu", seed=0)
                known = {*config.arm_names, *(view.name for view in getattr(config, "views", ()))}
                section, _, of_what = test.metric.partition("/")[0].partition("_")
                named = {test.arm, test.against, of_what if section in ("endless", "instability", "leak") else ""}
                assert named - {""} <= known, f"{claim.id}, {test.name}: {test.recipe} has no {named - known - {''}}"


def test_findings_follow_from_claims_and_evidence() -> None:
    assert differences(Places(root=ROOT), digests_from_git(ROOT) if has_whole_history(ROOT) else None) == []


def test_a_digest_changes_with_every_word_and_with_nothing_else() -> None:
    before = digests_in(CLAIMS)
    # Comments, spaces and the order of keys are no part of a claim; other claims are not either.
    spaced = CLAIMS.replace("contested = ", "# a comment\ncontested   = ").replace("[[claim]]", "\n\n[[claim]]")
    assert digests_in(spaced) == before
    assert digest_of({"id": "T", "scale": "cpu"}) == digest_of({"scale": "cpu", "id": "T"})
    for old, new in (("0.05", "0.06"), ("five percent", "six percent"), ("The loss", "A loss"), ('"gpu"', '"full"')):
        after = digests_in(CLAIMS.replace(old, new, 1))
        assert {name for name in before if before[name] != after[name]} == {"T01"}


def test_shared_fields_of_a_claims_tests_are_part_of_its_digest() -> None:
    text = CLAIMS.replace("each_test = {", 'each_test = { needs = "patience",', 1)
    assert parse_ledger(text).claims[0].tests[0].needs == "patience"
    assert digests_in(text)["T01"] != digests_in(CLAIMS)["T01"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('id = "T02"', 'id = "T01"', "by rising id, each once"),
        ('scale = "gpu"', 'scale = "smoke"', "ask for one of cpu, gpu, full, pretrained"),
        ('scale = "gpu"', 'scale = "gpu"\nverdict = "confirmed"', "has no field verdict"),
        ('statement = "The loss grows"', "", "T01 lacks statement"),
        ("margin = 0.05", "margin = true", "margin is True; expected float"),
        ("margin = 0.05, ", "", "test growth lacks margin"),
        ('source = "experiment"', 'source = "memory"', "expected one of experiment, arm, arms"),
        ('confirmed = "above"', 'confirmed = "near"', "expected one of above, below, within"),
        ('confirmed = "above"', 'confirmed = "within"', "needs a target"),
        ('confirmed = "above", margin = 0.5', 'confirmed = "above", margin = 1.0', "can come out one way only"),
        ("exact = true", "relative_error = 2.0", "relative_error is 2.0"),
        ("exact = true", "exact = true, relative_error = 0.1", "not both"),
        ('arm = "ttt", ', "", "arm is for tests of an arm or arms"),
        ("seeds = 3, why = \"more", "seeds = 2, why = \"more", "takes 3 of them or more"),
        ('why = "five percent"', 'why = ""', "must say something"),
        ('name = "long"', 'name = "short"', "each with a name of its own"),
        ("[[claim]]", "[[claim", "is no TOML"),
    ],
)  # fmt: skip
def test_a_claim_that_means_nothing_is_refused(old: str, new: str, message: str) -> None:
    assert old in CLAIMS
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_ledger(CLAIMS.replace(old, new, 1))


def test_a_count_whose_margin_is_never_passed_is_refused() -> None:
    text = CLAIMS.replace('confirmed = "within", target = 3000, margin = 0.5', 'confirmed = "above", margin = 0', 1)
    with pytest.raises(ValueError, match="can come out one way only"):
        parse_ledger(text)


def test_a_missing_file_of_claims_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no file of claims at .*claims\.toml"):
        load_ledger(tmp_path / "claims.toml")
