"""What is compared, in which order a rater hears it, and what so many judgements show."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy
from scipy import stats

Kind = Literal["pair", "repeat", "catch"]

MOST_PAIRS = 60
FEWEST_PAIRS_ADVISED = 40
REPEAT_SHARE, CATCH_SHARE = 0.1, 0.1
REPEAT_DISTANCE = 5
"""Trials at least between a pair and its repeat, where the test is long enough."""
LEVEL, POWER = 0.05, 0.8
SHARES_TOLD = (0.68, 0.65, 0.6)


@dataclass(frozen=True, kw_only=True)
class ItemPair:
    """Two systems to compare on one item; first and second are labels in alphabetical order."""

    item: str
    first: str
    second: str


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One question to one rater. pair: number of the pair or catch trial. is_swapped: second stands first."""

    kind: Kind
    pair: int
    is_swapped: bool


def choose_pairs(items: Mapping[str, Sequence[str]], most: int, seed: int) -> list[ItemPair]:
    """Every pair of systems on every item, or `most` of them: drawn so that all pairs of systems come up alike.

    items: {item: labels that have it}. Raises ValueError for `most` below 1.
    """
    if most < 1:
        raise ValueError(f"a test of {most} pairs is none; give 1 or more, 40 to 60 are advised")
    every = [
        ItemPair(item=item, first=first, second=second)
        for item, labels in sorted(items.items())
        for first, second in itertools.combinations(sorted(labels), 2)
    ]
    drawn = [every[place] for place in numpy.random.default_rng(seed).permutation(len(every))]
    taken: list[ItemPair] = []
    of_systems: Counter[tuple[str, str]] = Counter()
    of_item: Counter[str] = Counter()
    while drawn and len(taken) < most:
        # min() takes the first of equals, and those stand in drawn order.
        each = min(drawn, key=lambda pair: (of_systems[pair.first, pair.second], of_item[pair.item]))
        drawn.remove(each)
        taken.append(each)
        of_systems[each.first, each.second] += 1
        of_item[each.item] += 1
    return sorted(taken, key=lambda pair: (pair.item, pair.first, pair.second))


def hidden(pairs: int, share: float) -> int:
    """How many repeats, or catch trials, go with so many pairs: the share, and one at least."""
    return math.ceil(pairs * share)


def session(pairs: int, catches: int, seed: int, rater: str) -> list[Trial]:
    """One rater's trials in their order, drawn from the test's seed and the rater's code, so again the same.

    Every pair once, half of them with sides swapped; a tenth of them again later, swapped; catch trials between them.
    """
    random = numpy.random.default_rng(int.from_bytes(hashlib.sha256(f"{seed}:{rater}".encode()).digest()[:8], "big"))
    swapped = random.permutation([place % 2 == 0 for place in range(pairs)])
    order = [int(pair) for pair in random.permutation(pairs)]
    trials = [Trial(kind="pair", pair=pair, is_swapped=bool(swapped[pair])) for pair in order]
    far = min(REPEAT_DISTANCE, pairs - 1)
    repeated = random.choice(pairs - far, size=min(hidden(pairs, REPEAT_SHARE), pairs - far), replace=False)
    for pair in (order[place] for place in sorted(repeated.tolist())):
        first = next(place for place, each in enumerate(trials) if each.pair == pair)
        place = int(random.integers(min(first + far + 1, len(trials)), len(trials) + 1))
        trials.insert(place, Trial(kind="repeat", pair=pair, is_swapped=not swapped[pair]))
    catch_swapped = random.permutation([place % 2 == 0 for place in range(catches)])
    for catch in range(catches):
        place = int(random.integers(0, len(trials) + 1))
        trials.insert(place, Trial(kind="catch", pair=catch, is_swapped=bool(catch_swapped[catch])))
    return trials


def power(judgements: int, share: float) -> float:
    """Chance that so many independent judgements show a preference of this true share (exact binomial, one-sided
    at 5 %)."""
    needed = int(stats.binom.isf(LEVEL, judgements, 0.5)) + 1
    return float(stats.binom.sf(needed - 1, judgements, share))


def judgements_needed(share: float, most: int = 100_000) -> int:
    """The fewest independent judgements from which on the power stays at 0.8 or above. The power of an exact test
    is a saw: a single smaller number may reach it, and one more judgement lose it.

    Raises ValueError for a share that is not above one half, or too near to it.
    """
    if not 0.5 < share <= 1:
        raise ValueError(f"a preference has a share above 0.5 and at most 1, not {share}")
    deviation = (stats.norm.isf(LEVEL) + stats.norm.isf(1 - POWER)) * 0.5 / (share - 0.5)
    end = 10 + 3 * math.ceil(deviation**2)
    if end > most:
        raise ValueError(f"a share of {share} takes more than {most:,} judgements")
    return 1 + max((count for count in range(1, end) if power(count, share) < POWER), default=0)


def smallest_share(judgements: int) -> float | None:
    """The smallest true share, in steps of 1 %, that so many independent judgements show with power 0.8; None where
    they show none."""
    return next((step / 100 for step in range(51, 101) if power(judgements, step / 100) >= POWER), None)


def power_lines(pairs: int, raters: int) -> list[str]:
    """What a test of this size can show, in sentences."""
    needed = ", ".join(f"{judgements_needed(share)} if the truth is {100 * share:.0f} %" for share in SHARES_TOLD)
    lines = [
        f"To show a preference (exact binomial, one-sided 5 %, power {POWER}) takes so many independent judgements: "
        f"{needed}."
    ]
    worst, best = smallest_share(pairs), smallest_share(pairs * raters)
    if worst is None or best is None:
        lines.append(f"{pairs} pairs show no preference, however strong, if raters agree on every one.")
    else:
        lines.append(
            f"{pairs} pairs x {raters} raters show a true share of {100 * best:.0f} % if judgements are independent, "
            f"{100 * worst:.0f} % if all raters agree on every pair: the truth lies between."
        )
    if pairs < FEWEST_PAIRS_ADVISED:
        lines.append(f"{pairs} pairs are few: {FEWEST_PAIRS_ADVISED} to {MOST_PAIRS} are advised; name more runs.")
    return lines
