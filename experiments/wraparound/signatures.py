"""Which explanation of a breakdown fits: what each predicts, what was observed, and where they part.

C is the ring's context. A model that was trained "inside" has never read more than C positions; one trained "past" has.
Two things can break, and each is looked at by itself: the *local loss* (nats per word of a grammar that needs the last
three positions) and the *near recall* (facts heard less than C / 2 positions ago, which every window still holds).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from experiments.fact_streams.measures import StreamMeasures
from experiments.harness import metric_names as names
from experiments.harness.estimates import Estimate, estimate
from experiments.wraparound.configuration import WraparoundExperiment
from experiments.wraparound.results import ViewResult

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
        name="local loss",
        unit="nats per word",
        value=lambda m, first, end: m.word_loss_between(first, end),
        counts_above=0.03,
        free_running=lambda m, first, end: 1 - m.legal_between(first, end),
    ),
    Symptom(
        name="near recall",
        unit="share of near facts not recalled",
        value=lambda m, first, end: 1 - m.near_recall_between(first, end),
        counts_above=0.1,
        free_running=lambda m, first, end: 1 - m.near_recall_between(first, end),
    ),
)


@dataclass(frozen=True, kw_only=True)
class Observation:
    """One column: a question, its estimate over seeds, and the answer: yes where the whole interval lies above
    `yes_above`, no where it lies below, else open."""

    column: str
    found: Estimate
    yes_above: float

    @property
    def answer(self) -> Answer:
        if math.isnan(self.found.low):
            return Answer.OPEN
        above, below = self.found.low > self.yes_above, self.found.high < self.yes_above
        return Answer.YES if above else Answer.NO if below else Answer.OPEN


COLUMNS = {
    "breaks_at_wrap": "it breaks when the ring wraps: change from before C to after it",
    "onset_moves": "the onset moves with the window: share of the damage seen before C under a window of C / 2",
    "pinned_cures": "four pinned first positions cure it: share of the damage that is gone",
    "recomputed_cures": "recomputing the cache from the last positions cures it: share of the damage that is gone",
    "distant_recall_lost": "distant recall is lost: recall of near facts minus of those beyond all layers' reach",
    "free_running_worse": "it needs free running: change after C, own words read back minus given words",
    "streamed_differs": "streamed differs from windowed: largest relative difference, one position a call",
    "hidden_early_reproduces": "masking the first positions early reproduces it: share of the damage seen before C",
    "full_attention_suffers": "full attention suffers too: change from before C to beyond 8 C without a window",
}

EXPLANATIONS: dict[str, dict[str, Answer]] = {
    "cache corruption": {
        "breaks_at_wrap": Answer.YES, "onset_moves": Answer.YES, "pinned_cures": Answer.NO,
        "recomputed_cures": Answer.YES, "streamed_differs": Answer.YES,
    },
    "lost information": {
        "breaks_at_wrap": Answer.NO, "distant_recall_lost": Answer.YES, "streamed_differs": Answer.NO,
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
        "breaks_at_wrap": Answer.NO, "free_running_worse": Answer.YES,
    },
}  # fmt: skip
"""What each explanation predicts; columns it says nothing about are absent."""


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
    """The views of one training length, and one symptom's values in them, seed by seed."""

    def __init__(
        self, experiment: WraparoundExperiment, views: Mapping[str, ViewResult], length: str, symptom: Symptom
    ) -> None:
        self.views = views
        self.length = length
        self.symptom = symptom
        self.context = experiment.model.context
        self.end = experiment.view_plan.position_edges[-1]

    def results(self, view: str) -> ViewResult | None:
        return self.views.get(f"{view}-{self.length}")

    def values(self, view: str, first: int, end: int) -> list[float] | None:
        found = self.results(view)
        return None if found is None else [self.symptom.value(m, first, end) for m in found.measures]

    def damage(self, view: str, first: int | None = None) -> list[float] | None:
        """Change of the symptom from before C to the positions from `first` (C) on."""
        return _minus(
            self.values(view, self.context if first is None else first, self.end), self.values("ring", 0, self.context)
        )

    def share_of_damage(self, part: list[float] | None) -> list[float] | None:
        """Of the ring's damage; None where there is none, since a share of nothing says nothing."""
        whole = self.damage("ring")
        if part is None or whole is None or min(whole) <= self.symptom.counts_above:
            return None
        return [a / b for a, b in zip(part, whole, strict=True)]

    def gone(self, view: str) -> list[float] | None:
        return self.share_of_damage(_minus(self.damage("ring"), self.damage(view)))

    def early(self, view: str) -> list[float] | None:
        """Share of the ring's damage that the view shows in the second half of the first C positions."""
        half = self.context // 2
        return self.share_of_damage(
            _minus(self.values(view, half, self.context), self.values("ring", half, self.context))
        )

    def free_running(self) -> list[float] | None:
        def change(view: str) -> list[float] | None:
            found, worse = self.results(view), self.symptom.free_running
            if found is None:
                return None
            return [worse(m, self.context, self.end) - worse(m, 0, self.context) for m in found.measures]

        return _minus(change("free"), change("ring"))


def observe(
    experiment: WraparoundExperiment, views: Mapping[str, ViewResult], length: str, symptom: Symptom
) -> list[Observation]:
    """The columns that the views of one family ("inside" or "past") answer; views that were not run answer nothing."""
    family = _Family(experiment, views, length, symptom)
    context = experiment.model.context
    reach, furthest = experiment.model.num_layers * context, experiment.view_plan.distance_edges[-1]
    ring = family.results("ring")
    recall_step = None if ring is None else [
        m.recall_between(0, experiment.view_plan.near) - m.recall_between(reach, furthest) for m in ring.measures
    ]  # fmt: skip
    agreement = None if ring is None else [metrics[names.STREAMED_AGAINST_BATCHED] for metrics in ring.metrics]
    found = {
        "breaks_at_wrap": (family.damage("ring"), symptom.counts_above),
        "onset_moves": (family.early("half-the-window"), SHARE_THAT_COUNTS),
        "pinned_cures": (family.gone("sinks"), SHARE_THAT_COUNTS),
        "recomputed_cures": (family.gone("recomputed"), SHARE_THAT_COUNTS),
        "distant_recall_lost": (recall_step, RECALL_THAT_COUNTS),
        "free_running_worse": (family.free_running(), symptom.counts_above),
        "streamed_differs": (agreement, STREAMING_ERROR_THAT_COUNTS),
        "hidden_early_reproduces": (family.early("hidden"), SHARE_THAT_COUNTS),
        "full_attention_suffers": (family.damage("full", 8 * context), symptom.counts_above),
    }
    return [
        Observation(column=name, found=estimate(values), yes_above=above)
        for name, (values, above) in found.items()
        if values is not None
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


def _minus(left: list[float] | None, right: list[float] | None) -> list[float] | None:
    return None if left is None or right is None else [a - b for a, b in zip(left, right, strict=True)]
