"""From answers to shares with intervals, Bradley-Terry strengths and agreement."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy
import pandas
from scipy import stats

from analysis.listening.database import Answer, Database, StoredPair
from analysis.statistics import CONFIDENCE, RESAMPLES, Interval, share_interval
from analysis.tables import Table

MOST_CATCHES_FAILED_SHARE = 0.25
"""A rater who fails more of the catch trials than this is not counted. Set before any test was held."""
RESAMPLES_OF_STRENGTHS = 999
PRIOR_WINS = 0.5
"""Added to either side of every pair of systems: a system that never won has a finite strength."""
FIRST, TIE, SECOND = "first", "tie", "second"


@dataclass(frozen=True, kw_only=True)
class RaterReport:
    """One rater. catches_failed of catches, repeats_agreed of repeats: answered ones. left_share: of all answers with a
    preference. is_counted: answered everything and heard the catch trials; else `why_not` says why."""

    code: str
    answered: int
    trials: int
    catches_failed: int
    catches: int
    repeats_agreed: int
    repeats: int
    ties: int
    pairs: int
    left_share: float
    median_seconds: float
    why_not: str

    @property
    def is_counted(self) -> bool:
        return not self.why_not

    @property
    def has_finished(self) -> bool:
        return self.answered == self.trials


@dataclass(frozen=True, kw_only=True)
class Preference:
    """How often the first of two was preferred. won, ties, lost: judgements. share: of all judgements that were won, a
    tie being none; its interval is a bootstrap over items. one_sided: exact binomial probability of so many wins or
    more among judgements with a preference, if they were independent and neither better. two_sided: the same of a
    difference in either direction."""

    first: str
    second: str
    items: int
    won: int
    ties: int
    lost: int
    share: Interval
    share_ties_halved: Interval
    one_sided: float
    two_sided: float


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Everything that answers of counted raters say. strengths: {system: log-odds above the systems' mean}.
    alpha: Krippendorff's, ordinal; None where it is not defined. judgements: the table that all comes from."""

    judgements: Table
    preferences: tuple[Preference, ...]
    of_ttt: Preference | None
    strengths: dict[str, Interval]
    alpha: float | None


def rater_reports(answers: Sequence[Answer], trials: Mapping[str, int]) -> list[RaterReport]:
    """One for each rater that began. trials: {code: how many trials it has}."""
    return [_report(code, [each for each in answers if each.rater == code], trials[code]) for code in trials]


def judgement_table(answers: Sequence[Answer], pairs: Sequence[StoredPair], raters: Sequence[str]) -> Table:
    """rater, item, pair, first, second, outcome (first, tie or second): pairs heard the first time, by these raters."""
    by_number = {each.number: each for each in pairs if each.kind == "pair"}
    rows = [
        (each.rater, by_number[each.pair].pair.item, each.pair, by_number[each.pair].pair.first,
         by_number[each.pair].pair.second, _outcome(each))
        for each in answers
        if each.kind == "pair" and each.rater in raters
    ]  # fmt: skip
    return pandas.DataFrame(rows, columns=["rater", "item", "pair", "first", "second", "outcome"])


def judged(judgements: Table, ttt: Sequence[str], seed: int = 0) -> Judged:
    """Preferences of every pair of systems, of TTT against all else, strengths and agreement.

    judgements: as `judgement_table` gives them, one row or more. ttt: labels that count as TTT.
    """
    preferences = tuple(
        preference(rows, first, second, seed) for (first, second), rows in judgements.groupby(["first", "second"])
    )
    return Judged(
        judgements=judgements, preferences=preferences, of_ttt=_preference_for_ttt(judgements, set(ttt), seed),
        strengths=bradley_terry(judgements, seed), alpha=agreement(judgements),
    )  # fmt: skip


def preference(judgements: Table, first: str, second: str, seed: int = 0) -> Preference:
    """Of judgements that all compare the same two."""
    outcomes = Counter(judgements["outcome"])
    won, ties, lost = (outcomes[each] for each in (FIRST, TIE, SECOND))
    preferred = won + lost
    counts = judgements.groupby("item")["outcome"].value_counts().unstack(fill_value=0)
    counts = counts.reindex(columns=[FIRST, TIE, SECOND], fill_value=0).to_numpy(dtype=float)

    def p_value(side: str) -> float:
        return float(stats.binomtest(won, preferred, alternative=side).pvalue) if preferred else 1.0

    return Preference(
        first=first, second=second, items=len(counts), won=won, ties=ties, lost=lost,
        share=share_over_items(counts[:, 0], counts.sum(axis=1), seed),
        share_ties_halved=share_over_items(counts[:, 0] + counts[:, 1] / 2, counts.sum(axis=1), seed),
        one_sided=p_value("greater"), two_sided=p_value("two-sided"),
    )  # fmt: skip


def share_over_items(won: Any, judged_of_item: Any, seed: int = 0) -> Interval:
    """Sum of `won` over sum of `judged_of_item` (both by item) and its 95 % percentile bootstrap interval over items.

    Where every item is won, or none, a bootstrap gives a point, however few they are: then the exact interval of so
    many items (Clopper-Pearson). NaN ends for one item. `seeds` is the number of items.
    """
    won, counts = numpy.asarray(won, dtype=float), numpy.asarray(judged_of_item, dtype=float)
    share, items = float(won.sum() / counts.sum()), len(counts)
    if items < 2:
        return Interval(value=share, low=math.nan, high=math.nan, seeds=items)
    if share in (0.0, 1.0):
        exact = share_interval(round(share * items), items)
        return Interval(value=share, low=exact.low, high=exact.high, seeds=items)
    drawn = numpy.random.default_rng(seed).integers(0, items, size=(RESAMPLES, items))
    shares = won[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = _ends(shares)
    return Interval(value=share, low=low, high=high, seeds=items)


def bradley_terry(judgements: Table, seed: int = 0) -> dict[str, Interval]:
    """{system: strength}, log-odds above the mean of all, with 95 % bootstrap intervals over items, strongest first.

    A tie is half a win for either side. NaN ends for one item.
    """
    labels = sorted({*judgements["first"], *judgements["second"]})
    place = {label: number for number, label in enumerate(labels)}
    items = sorted(set(judgements["item"]))
    wins = numpy.zeros((len(items), len(labels), len(labels)))
    of_item = {item: number for number, item in enumerate(items)}
    for row in judgements.itertuples():
        first, second = place[row.first], place[row.second]
        gained = {FIRST: 1.0, TIE: 0.5, SECOND: 0.0}[row.outcome]
        wins[of_item[row.item], first, second] += gained
        wins[of_item[row.item], second, first] += 1 - gained
    strengths = _strengths(wins.sum(axis=0))
    low = high = numpy.full(len(labels), math.nan)
    if len(items) > 1:
        random = numpy.random.default_rng(seed)
        drawn = [
            _strengths(wins[random.integers(0, len(items), size=len(items))].sum(axis=0))
            for _ in range(RESAMPLES_OF_STRENGTHS)
        ]
        low, high = numpy.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
    found = {
        label: Interval(value=float(strengths[n]), low=float(low[n]), high=float(high[n]), seeds=len(items))
        for label, n in place.items()
    }
    return dict(sorted(found.items(), key=lambda each: -each[1].value))


def agreement(judgements: Table) -> float | None:
    """Krippendorff's alpha over pairs, raters as coders, the three outcomes in their order: 1 where all agree, 0 by
    chance. None for one rater, and where all answers are the same."""
    from krippendorff import alpha

    numbers = judgements.assign(number=judgements["outcome"].map({FIRST: -1, TIE: 0, SECOND: 1}))
    table = numbers.pivot(index="rater", columns="pair", values="number").to_numpy(dtype=float)
    if len(table) < 2 or len(set(numbers["number"])) < 2:
        return None
    return float(alpha(reliability_data=table, level_of_measurement="ordinal"))


def _strengths(wins: Any) -> Any:
    """wins[i, j]: how often i won against j."""
    from choix import ilsr_pairwise_dense

    prior = PRIOR_WINS * (1 - numpy.eye(len(wins)))
    return ilsr_pairwise_dense(wins + prior)


def turned_to_ttt(judgements: Table, ttt: set[str]) -> Table:
    """Judgements of pairs with TTT on one side alone, outcomes as if TTT were the first of each."""
    first, second = judgements["first"].isin(ttt), judgements["second"].isin(ttt)
    rows = judgements[first != second]
    turned = {FIRST: SECOND, TIE: TIE, SECOND: FIRST}
    outcomes = [
        outcome if is_first else turned[outcome]
        for outcome, is_first in zip(rows["outcome"], rows["first"].isin(ttt), strict=True)
    ]
    return rows.assign(outcome=outcomes)


def _preference_for_ttt(judgements: Table, ttt: set[str], seed: int) -> Preference | None:
    """TTT as the first, whatever stands against it; pairs of two TTT systems, or of none, take no part."""
    rows = turned_to_ttt(judgements, ttt)
    return None if rows.empty else preference(rows, "TTT", "no TTT", seed)


def _report(code: str, answers: Sequence[Answer], trials: int) -> RaterReport:
    pairs = {each.pair: each for each in answers if each.kind == "pair"}
    catches = [each for each in answers if each.kind == "catch"]
    repeats = [each for each in answers if each.kind == "repeat"]
    failed = sum(_outcome(each) != FIRST for each in catches)
    sides = [each.choice for each in answers if each.choice != "none"]
    why_not = ""
    if len(answers) < trials:
        why_not = f"answered {len(answers)} of {trials}"
    elif failed > MOST_CATCHES_FAILED_SHARE * len(catches):
        why_not = f"failed {failed} of {len(catches)} catch trials"
    return RaterReport(
        code=code, answered=len(answers), trials=trials, catches_failed=failed, catches=len(catches),
        repeats_agreed=sum(_outcome(each) == _outcome(pairs[each.pair]) for each in repeats), repeats=len(repeats),
        ties=sum(each.choice == "none" for each in pairs.values()), pairs=len(pairs),
        left_share=sides.count("left") / len(sides) if sides else math.nan,
        median_seconds=float(numpy.median([each.seconds for each in answers])) if answers else math.nan,
        why_not=why_not,
    )  # fmt: skip


def _outcome(answer: Answer) -> str:
    """In terms of the pair's first and second, whichever side they stood on."""
    if answer.choice == "none":
        return TIE
    return FIRST if (answer.choice == "left") != answer.is_swapped else SECOND


def _ends(values: Any) -> tuple[float, float]:
    low, high = numpy.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def labels_counted_as_ttt(database: Database) -> tuple[str, ...]:
    return tuple(each["label"] for each in database.test.systems if each["is_ttt"])
