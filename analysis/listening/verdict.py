"""Whether a test may be judged, what it says then, and the reasons why not."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

from analysis.listening.along import AlongStream, along_streams
from analysis.listening.database import Answer, Database, Test
from analysis.listening.judging import (
    Judged,
    RaterReport,
    judged,
    judgement_table,
    labels_counted_as_ttt,
    rater_reports,
)
from analysis.listening.preparing import FEWEST_RATERS

FEWEST_ITEMS = 20
"""Below, a percentile bootstrap over items is too narrow: with 10 it calls one of two equal systems better in 4 % of
tests, where 2.5 % are asked for (README.md)."""
MARGIN = 0.5


@dataclass(frozen=True, kw_only=True)
class Results:
    """A test's results. refusals: why there is no verdict, empty where there is one. judged: None until enough raters
    have finished, so that nobody stops when the numbers please; nor is `along`, how preferences change from the first
    quarter of long streams to the last. digest: of all answers and what they were given to."""

    test: Test
    raters: tuple[RaterReport, ...]
    judged: Judged | None
    refusals: tuple[str, ...]
    pairs: int
    digest: str
    along: tuple[AlongStream, ...] = ()

    @property
    def counted(self) -> tuple[str, ...]:
        return tuple(each.code for each in self.raters if each.is_counted)

    @property
    def verdict(self) -> str:
        """One sentence; of a refused test the reasons."""
        if self.refusals:
            return f"No verdict: {'; '.join(self.refusals)}."
        assert self.judged is not None and self.judged.of_ttt is not None
        share = self.judged.of_ttt.share
        said = "Undecided whether more than half"
        if share.low > MARGIN or share.high < MARGIN:
            said = "More than half" if share.low > MARGIN else "Fewer than half"
        found = f"{100 * share.value:.1f} % [{100 * share.low:.1f} %, {100 * share.high:.1f} %]"
        return f"{said} of the blind pairs are won by TTT: {found} (95 % interval over items; a tie is not won)."


def results_of(database: Database) -> Results:
    """What the answers in the store say today."""
    test, answers, pairs = database.test, database.answers(), database.pairs()
    reports = tuple(rater_reports(answers, database.raters()))
    counted = [each.code for each in reports if each.is_counted]
    needed = max(test.raters, FEWEST_RATERS)
    ttt = labels_counted_as_ttt(database)
    of_ttt = [each for each in pairs if each.kind == "pair" and (each.pair.first in ttt) != (each.pair.second in ttt)]
    items = len({each.pair.item for each in of_ttt})
    refusals: list[str] = []
    if test.is_simulated:
        refusals.append("the store is marked simulated: programs answered, and no answer of theirs is a rating")
    if len(counted) < needed:
        refusals.append(f"{len(counted)} of {needed} raters count (everything answered, catch trials heard)")
    if not of_ttt:
        refusals.append("no pair has TTT on one side only (labels that begin with ttt, or --ttt)")
    elif items < FEWEST_ITEMS:
        refusals.append(f"{items} items with TTT on one side; an interval over items takes {FEWEST_ITEMS}")
    found, along = None, ()
    if len(counted) >= needed:
        judgements = judgement_table(answers, pairs, counted)
        found = judged(judgements, ttt, test.seed)
        along = along_streams(judgements, set(ttt), test.places, test.seed)
    return Results(
        test=test, raters=reports, judged=found, refusals=tuple(refusals),
        pairs=sum(each.kind == "pair" for each in pairs), digest=_digest(test, answers), along=along,
    )  # fmt: skip


def _digest(test: Test, answers: list[Answer]) -> str:
    told = [test.digest, [asdict(each) for each in answers]]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]
