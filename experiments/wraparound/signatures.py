"""Which explanation of a breakdown fits: what each predicts, what was observed, and where they part.

C is the ring's context. A model that was trained "inside" has never read more than C positions; one trained "past" has.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from experiments.harness import metric_names as names
from experiments.wraparound.configuration import WraparoundExperiment
from experiments.wraparound.results import Estimate, ViewResult, estimate

RISE_THAT_COUNTS_NATS = 0.02
SHARE_THAT_COUNTS = 0.5
RECALL_THAT_COUNTS = 0.25
LEGAL_SHARE_THAT_COUNTS = 0.02
STREAMING_ERROR_THAT_COUNTS = 1e-4


class Answer(StrEnum):
    YES = "yes"
    NO = "no"
    OPEN = "open"


@dataclass(frozen=True, kw_only=True)
class Column:
    """One question to the measurements. yes_above: the answer is yes where the whole interval lies above it, no where
    it lies below."""

    question: str
    measure: str
    yes_above: float

    def answer(self, found: Estimate) -> Answer:
        if math.isnan(found.low):
            return Answer.OPEN
        return Answer.YES if found.low > self.yes_above else Answer.NO if found.high < self.yes_above else Answer.OPEN


COLUMNS = {
    "rises": Column(
        question="local loss rises at the wrap",
        measure="nats per word in [C, 2C) minus [C/2, C)",
        yes_above=RISE_THAT_COUNTS_NATS,
    ),
    "onset_moves": Column(
        question="the onset moves with the window",
        measure="share of the rise that is gone in [C, 2C) when the window is 2C",
        yes_above=SHARE_THAT_COUNTS,
    ),
    "pinned_cures": Column(
        question="four pinned first positions cure it",
        measure="share of the rise that is gone with sinks",
        yes_above=SHARE_THAT_COUNTS,
    ),
    "recomputed_cures": Column(
        question="recomputing the cache from the last C positions cures it",
        measure="share of the rise that is gone when recomputed",
        yes_above=SHARE_THAT_COUNTS,
    ),
    "distant_recall_lost": Column(
        question="distant recall is lost",
        measure="recall of facts within C/2 minus of those beyond the reach of all layers",
        yes_above=RECALL_THAT_COUNTS,
    ),
    "free_running_worse": Column(
        question="it needs free running",
        measure="fall of the legal words' probability from [C/2, C) to beyond 8C, free running minus teacher-forced",
        yes_above=LEGAL_SHARE_THAT_COUNTS,
    ),
    "streamed_differs": Column(
        question="streamed differs from windowed",
        measure="largest relative difference, one position a call",
        yes_above=STREAMING_ERROR_THAT_COUNTS,
    ),
    "hidden_early_reproduces": Column(
        question="masking the first positions early reproduces it",
        measure="share of the rise seen in [C/2, C) when the first four are masked there",
        yes_above=SHARE_THAT_COUNTS,
    ),
    "full_attention_suffers": Column(
        question="full attention suffers too",
        measure="nats per word beyond 8C minus [C/2, C), without any window",
        yes_above=RISE_THAT_COUNTS_NATS,
    ),
}

EXPLANATIONS: dict[str, dict[str, Answer]] = {
    "cache corruption": {
        "rises": Answer.YES, "onset_moves": Answer.YES, "pinned_cures": Answer.NO, "recomputed_cures": Answer.YES,
        "streamed_differs": Answer.YES,
    },
    "lost information": {
        "rises": Answer.NO, "distant_recall_lost": Answer.YES, "streamed_differs": Answer.NO,
    },
    "sink eviction": {
        "rises": Answer.YES, "onset_moves": Answer.YES, "pinned_cures": Answer.YES, "recomputed_cures": Answer.YES,
        "streamed_differs": Answer.NO, "hidden_early_reproduces": Answer.YES,
    },
    "longer than trained": {
        "rises": Answer.YES, "onset_moves": Answer.NO, "pinned_cures": Answer.NO, "recomputed_cures": Answer.YES,
        "streamed_differs": Answer.NO, "full_attention_suffers": Answer.YES,
    },
    "exposure to its own output": {
        "rises": Answer.NO, "free_running_worse": Answer.YES,
    },
}  # fmt: skip
"""What each explanation predicts; columns it says nothing about are absent."""


@dataclass(frozen=True, kw_only=True)
class Observation:
    """One column of one family of arms."""

    column: str
    found: Estimate
    answer: Answer


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


def observe(experiment: WraparoundExperiment, views: Mapping[str, ViewResult], length: str) -> list[Observation]:
    """The columns that the views of one family ("inside" or "past") answer; views that were not run answer nothing."""
    context = experiment.model.context
    far, end = 8 * context, experiment.view_plan.position_edges[-1]
    reach = experiment.model.num_layers * context

    def per_seed(view: str, value: Callable[[int], float]) -> list[float] | None:
        return (
            None
            if f"{view}-{length}" not in views
            else [value(index) for index in range(len(views[f"{view}-{length}"].seeds))]
        )

    def loss(view: str, first: int, last: int) -> list[float] | None:
        found = views.get(f"{view}-{length}")
        return None if found is None else [m.word_loss_between(first, last) for m in found.measures]

    def rise(view: str, first: int, last: int) -> list[float] | None:
        after, before = loss(view, first, last), loss(view, context // 2, context)
        return None if after is None or before is None else [a - b for a, b in zip(after, before, strict=True)]

    def gone(view: str) -> list[float] | None:
        own, ring = rise(view, context, 2 * context), rise("ring", context, 2 * context)
        if own is None or ring is None or min(ring) <= RISE_THAT_COUNTS_NATS:
            return None  # a share of a rise that is not there means nothing
        return [1 - a / b for a, b in zip(own, ring, strict=True)]

    def hidden() -> list[float] | None:
        early, plain, ring = (
            loss("hidden", context // 2, context), loss("ring", context // 2, context),
            rise("ring", context, 2 * context),
        )  # fmt: skip
        if early is None or plain is None or ring is None or min(ring) <= RISE_THAT_COUNTS_NATS:
            return None
        return [(a - b) / c for a, b, c in zip(early, plain, ring, strict=True)]

    def legal_fall(view: str) -> list[float] | None:
        found = views.get(f"{view}-{length}")
        if found is None:
            return None
        return [m.legal_between(context // 2, context) - m.legal_between(far, end) for m in found.measures]

    def free_running() -> list[float] | None:
        free, forced = legal_fall("free"), legal_fall("ring")
        return None if free is None or forced is None else [a - b for a, b in zip(free, forced, strict=True)]

    def recall_step() -> list[float] | None:
        found, last = views.get(f"ring-{length}"), experiment.view_plan.distance_edges[-1]
        if found is None:
            return None
        return [m.recall_between(0, context // 2) - m.recall_between(reach, last) for m in found.measures]

    found = {
        "rises": rise("ring", context, 2 * context),
        "onset_moves": gone("twice-the-window"),
        "pinned_cures": gone("sinks"),
        "recomputed_cures": gone("recomputed"),
        "distant_recall_lost": recall_step(),
        "free_running_worse": free_running(),
        "streamed_differs": per_seed("ring", lambda index: views[f"ring-{length}"].metrics[index][
            names.STREAMED_AGAINST_BATCHED]),
        "hidden_early_reproduces": hidden(),
        "full_attention_suffers": rise("full", far, end),
    }  # fmt: skip
    return [
        Observation(column=name, found=estimate(values), answer=COLUMNS[name].answer(estimate(values)))
        for name, values in found.items()
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
