"""Verdicts and intervals of the claims, from the evidence files alone."""

from __future__ import annotations

import pandas

from analysis.evidence import Evidence
from analysis.findings import number, rule, verdicts
from analysis.ledger import RATED_COMMANDS, Ledger
from analysis.pictures.drawing import Picture, draw_points, mark, panel, rows_height, with_legend
from analysis.pictures.finished import NothingToShowError, command
from analysis.tables import Table
from analysis.verdicts import outcome_of

FIRST_SCALE = "cpu"


def verdicts_table(ledger: Ledger, evidence: Evidence) -> Table:
    """A row for every claim and scale with runs that count: statement, verdict, scale obtained, scale asked."""
    found = verdicts(ledger, evidence)
    rows = [
        (claim.id, claim.statement, verdict.text, verdict.scale or "-", claim.scale)
        for claim in ledger.claims
        for verdict in found[claim.id]
    ]
    return pandas.DataFrame(rows, columns=["claim", "statement", "verdict", "scale", "asked for"]).set_index("claim")


def tests_table(ledger: Ledger, evidence: Evidence) -> Table:
    """A row for every test that was measured: its number with interval, its rule, and what follows."""
    tests = {(claim.id, test.name): test for claim in ledger.claims for test in claim.tests}
    rows = []
    for row in evidence.tests:
        test = tests[row.claim, row.test]
        low, high = number(row.low, row.unit), number(row.high, row.unit)
        outcome = str(outcome_of(test, row.interval))
        rows.append((
            row.claim, row.test, row.scale, number(row.value, row.unit), f"[{low}, {high}]", row.unit, row.seeds,
            rule(test), outcome,
        ))  # fmt: skip
    columns = ["claim", "test", "scale", "found", "95 %", "unit", "seeds", "confirmed where", "outcome"]
    return pandas.DataFrame(rows, columns=columns).set_index(["claim", "test"])


def what_to_run(ledger: Ledger, evidence: Evidence) -> Table:
    """Claims without any run that counts, with what they ask and the command of each recipe that they read."""
    measured = {row.claim for row in evidence.tests}
    rows = [
        (
            claim.id,
            claim.statement,
            _how_to_run(ledger, recipe),
        )
        for claim in ledger.claims
        if claim.id not in measured
        for recipe in claim.recipes
    ]
    return pandas.DataFrame(rows, columns=["claim", "statement", "run"]).set_index("claim")


def _how_to_run(ledger: Ledger, recipe: str) -> str:
    if recipe in ledger.planned_recipes:
        return "not written yet"
    return ", then ".join(RATED_COMMANDS) if recipe in ledger.rated_recipes else command(recipe, FIRST_SCALE)


def claim_picture(ledger: Ledger, evidence: Evidence, claim_id: str) -> Picture:
    """Intervals of a claim's tests at the largest scale that has any, beside the margin of its first test; tests of
    another unit are left to the table."""
    claim = ledger.claim(claim_id)
    if claim is None:
        raise ValueError(f"claim_id is {claim_id!r}; it is one of {', '.join(each.id for each in ledger.claims)}")
    scale = verdicts(ledger, evidence)[claim_id][0].scale
    of_scale = {row.test: row for row in evidence.tests if row.claim == claim_id and row.scale == scale}
    measured = [test for test in claim.tests if test.name in of_scale]
    if not measured:
        recipe = claim.recipes[0]
        raise NothingToShowError(
            f"no run counts for {claim_id} yet: {command(recipe, FIRST_SCALE)}, then make findings"
        )
    first = measured[0]
    rows = [
        (test.name, of_scale[test.name].value, of_scale[test.name].low, of_scale[test.name].high)
        for test in measured
        if (test.unit, test.margin, test.target) == (first.unit, first.margin, first.target)
    ]
    figure, axes = panel(first.unit, "", rows_height(len(rows)))
    draw_points(axes, pandas.DataFrame(rows, columns=["test", "value", "low", "high"]), "test")
    if first.target is None:
        mark(axes, f"margin: confirmed {first.confirmed} it", x=first.margin)
    else:
        for side in (-first.margin, first.margin):
            mark(axes, f"confirmed within {rule(first)}" if side < 0 else "_", x=first.target + side)
    return Picture(
        title=f"{claim.id}: {claim.statement}", caption=f"scale {scale}; intervals are 95 %",
        figure=with_legend(figure, axes),
    )  # fmt: skip
