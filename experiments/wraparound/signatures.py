"""Which explanation of a breakdown fits: what each predicts, what was observed, and where they part.

C is the ring's context. A model that was trained "inside" has never read more than C positions; one trained "past" has.
What can break is all that every window still holds: the words of a grammar that needs the last three positions, and
facts heard less than C / 2 positions ago. Which of the two breaks differs from seed to seed, so they are looked at
together (*known text*) and one by one (*local loss*, *near recall*). For the same reason an answer is that of most
seeds, not of their mean. Every change is a view's own: from just before its wrap to just after it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from experiments.fact_streams.measures import StreamMeasures
from experiments.harness import metric_names as names
from experiments.harness.estimates import ShareOfSeeds, share_of_seeds
from experiments.wraparound.configuration import WraparoundExperiment
from experiments.wraparound.results import ViewResult

BySeed = dict[int, float]
SHARE_THAT_COUNTS = 0.5
RECALL_THAT_COUNTS = 0.25
STREAMING_ERROR_THAT_COUNTS = 1e-4


class Answer(StrEnum):
    YES = "yes"
    NO = "no"
    OPEN = "open"


@dataclass(frozen=True, kw_only=True)
class Symptom:
    """Something that can break. value: of positions first <= t < end, the larger the worse. counts_above: the change
    that counts as damage. free_running: the same where the model reads its own words, on which no loss is defined."""

    name: str
    unit: str
    value: Callable[[StreamMeasures, int, int], float]
    counts_above: float
    free_running: Callable[[StreamMeasures, int, int], float]


SYMPTOMS = (
    Symptom(
        name="known text",
        unit="nats too many, the mean of a word's and of a near fact's",
        value=lambda m, first, end: (m.excess_between(first, end) + m.near_loss_between(first, end)) / 2,
        counts_above=0.05,
        free_running=lambda m, first, end: (
            ((1 - m.legal_between(first, end)) + (1 - m.near_recall_between(first, end))) / 2
        ),
    ),
    Symptom(
        name="local loss",
        unit="nats per word above the grammar's",
        value=lambda m, first, end: m.excess_between(first, end),
        counts_above=0.05,
        free_running=lambda m, first, end: 1 - m.legal_between(first, end),
    ),
    Symptom(
        name="near recall",
        unit="share of near facts not recalled",
        value=lambda m, first, end: 1 - m.near_recall_between(first, end),
        counts_above=0.05,
        free_running=lambda m, first, end: 1 - m.near_recall_between(first, end),
    ),
)


@dataclass(frozen=True, kw_only=True)
class Observation:
    """One column: a value a seed, and how many of the seeds lie above the column's limit.

    The answer is yes where the share of such seeds is above one half with 95 % confidence, no where it is below, else
    open. With fewer than six seeds it is always open.
    """

    column: str
    values: dict[int, float]
    yes_above: float

    @property
    def share(self) -> ShareOfSeeds:
        return share_of_seeds([value > self.yes_above for value in self.values.values()])

    @property
    def median(self) -> float:
        return statistics.median(self.values.values()) if self.values else math.nan

    @property
    def answer(self) -> Answer:
        share = self.share
        return Answer.YES if share.low > 0.5 else Answer.NO if share.high < 0.5 else Answer.OPEN


COLUMNS = {
    "breaks_at_wrap": "it breaks when the ring wraps: change from [C/2, C) to [C, 2C)",
    "stays_broken": "it stays broken: beyond 8 C minus [C/2, C)",
    "onset_moves": "the onset moves with the window: share of the damage that a ring of C/2 shows before C",
    "pinned_cures": "four pinned first positions cure it: share of the damage that is gone",
    "recomputed_cures": "recomputing the cache from the last positions cures it: share of the damage that is gone",
    "distant_recall_lost": "distant recall is lost: near facts before the wrap minus facts beyond all layers' reach",
    "free_running_worse": "it needs free running: change beyond 8 C, own words read back minus given words",
    "streamed_differs": "streamed differs from windowed: largest relative difference, one position a call",
    "hidden_early_reproduces": "masking the first positions early reproduces it: share of the damage seen before C",
    "full_attention_suffers": "full attention suffers too: beyond 8 C minus [C/2, C), without a window",
    "ttt_ages": "TTT suffers with age: beyond 8 C minus [C/2, C), TTT in the top layer",
    "reset_cures_ttt": "starting the TTT state anew cures that: share of it that is gone",
}

EXPLANATIONS: dict[str, dict[str, Answer]] = {
    "cache corruption": {
        "breaks_at_wrap": Answer.YES, "onset_moves": Answer.YES, "pinned_cures": Answer.NO,
        "recomputed_cures": Answer.YES, "streamed_differs": Answer.YES,
    },
    "lost information": {
        "distant_recall_lost": Answer.YES, "streamed_differs": Answer.NO,
    },
    "sink eviction": {
        "breaks_at_wrap": Answer.YES, "onset_moves": Answer.YES, "pinned_cures": Answer.YES,
        "recomputed_cures": Answer.YES, "streamed_differs": Answer.NO, "hidden_early_reproduces": Answer.YES,
    },
    "longer than trained": {
        "breaks_at_wrap": Answer.YES, "onset_moves": Answer.NO, "pinned_cures": Answer.NO,
        "recomputed_cures": Answer.YES, "streamed_differs": Answer.NO, "full_attention_suffers": Answer.YES,
    },
    "exposure to its own output": {
        "free_running_worse": Answer.YES,
    },
    "age of the TTT state": {
        "ttt_ages": Answer.YES, "reset_cures_ttt": Answer.YES,
    },
}  # fmt: skip
"""What each explanation predicts; columns it says nothing about are absent. Lost information, exposure and age do not
speak of the wrap: they may hold beside another explanation of what breaks there."""

NOT_ASKED_HERE = {
    "rounding of the state": "FP32 throughout; recipe bf16-drift",
    "positions or counters in BF16": "see rotary/* of the mechanics: the package counts in FP32",
}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """How one explanation fares. against: columns that contradict it; open_columns: those that decide nothing."""

    explanation: str
    against: tuple[str, ...]
    open_columns: tuple[str, ...]

    @property
    def result(self) -> str:
        if self.against:
            return "contradicted"
        return "undecided" if self.open_columns else "matches"


class _Family:
    """The views of one training length, and one symptom's values in them, by seed."""

    def __init__(
        self, experiment: WraparoundExperiment, views: Mapping[str, ViewResult], length: str, symptom: Symptom
    ) -> None:
        self.views = views
        self.length = length
        self.symptom = symptom
        self.context = experiment.model.context
        self.far = 8 * self.context, experiment.view_plan.position_edges[-1]

    def by_seed(self, view: str, kind: Literal["onset", "long"], value: Callable[[StreamMeasures], float]) -> BySeed:
        found = self.views.get(f"{view}-{self.length}")
        if found is None:
            return {}
        measures = found.onset if kind == "onset" else found.long
        values = dict(zip(found.seeds, map(value, measures), strict=True))
        return {seed: number for seed, number in values.items() if not math.isnan(number)}

    def around_wrap(self, view: str, first: int, end: int) -> BySeed:
        return self.by_seed(view, "onset", lambda m: self.symptom.value(m, first, end))

    def before(self, view: str) -> BySeed:
        return self.around_wrap(view, self.context // 2, self.context)

    def at_wrap(self, view: str) -> BySeed:
        """The view's change from the half context before the wrap to the context after it."""
        return _combined(self.around_wrap(view, self.context, 2 * self.context), self.before(view), _minus)

    def far_out(self, view: str) -> BySeed:
        """The view's change from before the wrap to beyond eight contexts."""
        return _combined(
            self.by_seed(view, "long", lambda m: self.symptom.value(m, *self.far)), self.before(view), _minus
        )

    def share_of_damage(self, part: BySeed, whole: BySeed) -> BySeed:
        """Of a damage, in the seeds that have any: a share of nothing says nothing."""
        damaged = {seed: value for seed, value in whole.items() if value > self.symptom.counts_above}
        return _combined(part, damaged, lambda a, b: a / b)

    def gone(self, view: str) -> BySeed:
        whole = self.at_wrap("ring")
        return self.share_of_damage(_combined(whole, self.at_wrap(view), _minus), whole)

    def early(self, view: str) -> BySeed:
        """Share of the ring's damage that another way of running the same model shows in the half context before C."""
        return self.share_of_damage(_combined(self.before(view), self.before("ring"), _minus), self.at_wrap("ring"))

    def reset_gone(self) -> BySeed:
        whole = self.far_out("ttt")
        return self.share_of_damage(_combined(whole, self.far_out("ttt-reset"), _minus), whole)

    def free_running(self) -> BySeed:
        worse, half = self.symptom.free_running, self.context // 2

        def change(view: str) -> BySeed:
            late = self.by_seed(view, "long", lambda m: worse(m, *self.far))
            return _combined(late, self.by_seed(view, "onset", lambda m: worse(m, half, self.context)), _minus)

        return _combined(change("free"), change("ring"), _minus)


def observe(
    experiment: WraparoundExperiment, views: Mapping[str, ViewResult], length: str, symptom: Symptom
) -> list[Observation]:
    """The columns that the views of one family ("inside" or "past") answer; views that were not run answer nothing."""
    family = _Family(experiment, views, length, symptom)
    context, furthest = experiment.model.context, experiment.view_plan.distance_edges[-1]
    reach = experiment.model.num_layers * context
    ring = views.get(f"ring-{length}")
    agreement = {} if ring is None else {
        seed: metrics[names.STREAMED_AGAINST_BATCHED] for seed, metrics in zip(ring.seeds, ring.metrics, strict=True)
    }  # fmt: skip
    learned = family.by_seed("ring", "onset", lambda m: m.near_recall_between(0, context))
    distant = family.by_seed("ring", "long", lambda m: m.recall_between(reach, furthest))
    found = {
        "breaks_at_wrap": (family.at_wrap("ring"), symptom.counts_above),
        "stays_broken": (family.far_out("ring"), symptom.counts_above),
        "onset_moves": (family.early("half-the-window"), SHARE_THAT_COUNTS),
        "pinned_cures": (family.gone("sinks"), SHARE_THAT_COUNTS),
        "recomputed_cures": (family.gone("recomputed"), SHARE_THAT_COUNTS),
        "distant_recall_lost": (_combined(learned, distant, _minus), RECALL_THAT_COUNTS),
        "free_running_worse": (family.free_running(), symptom.counts_above),
        "streamed_differs": (agreement, STREAMING_ERROR_THAT_COUNTS),
        "hidden_early_reproduces": (family.early("hidden"), SHARE_THAT_COUNTS),
        "full_attention_suffers": (family.far_out("full"), symptom.counts_above),
        "ttt_ages": (family.far_out("ttt"), symptom.counts_above),
        "reset_cures_ttt": (family.reset_gone(), SHARE_THAT_COUNTS),
    }
    return [
        Observation(column=name, values=values, yes_above=above) for name, (values, above) in found.items() if values
    ]


def judge(observations: list[Observation]) -> list[Verdict]:
    """Every explanation against the observations. A column nobody answered is open."""
    answers = {observation.column: observation.answer for observation in observations}
    verdicts = []
    for explanation, expected in EXPLANATIONS.items():
        seen = {column: answers.get(column, Answer.OPEN) for column in expected}
        against = tuple(column for column, answer in seen.items() if answer not in (expected[column], Answer.OPEN))
        open_columns = tuple(column for column, answer in seen.items() if answer == Answer.OPEN)
        verdicts.append(Verdict(explanation=explanation, against=against, open_columns=open_columns))
    return verdicts


def _combined(left: BySeed, right: BySeed, combine: Callable[[float, float], float]) -> BySeed:
    """Of the seeds that both have."""
    return {seed: combine(left[seed], right[seed]) for seed in left.keys() & right.keys()}


def _minus(left: float, right: float) -> float:
    return left - right
