"""What the detector experiment is: what is looked at, on which conversations, and what is planted where."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from experiments.data.spec import ConversationSpec
from experiments.harness.identity import plain_values
from experiments.harness.seeded import SeededExperiment

ViewName = Literal["units", "text", "sound"]
VIEW_NAMES: tuple[ViewName, ...] = ("units", "text", "sound")


@dataclass(frozen=True, kw_only=True)
class View:
    """What of a stream is looked at, in windows of window_s. ngram_order, remembered_symbols: of the measures of
    symbols; sound has none of them."""

    name: ViewName
    window_s: float
    ngram_order: int = 0
    remembered_symbols: int = 0

    def __post_init__(self) -> None:
        if self.name not in VIEW_NAMES:
            raise ValueError(f"no view {self.name!r}; there are {', '.join(VIEW_NAMES)}")
        if not self.window_s > 0 or (self.name == "sound") == (self.ngram_order > 0) or self.ngram_order < 0:
            raise ValueError(
                f"view {self.name}: window_s must be above 0 (is {self.window_s:g}), and symbols, not sound, have an "
                f"ngram_order of 1 or more (is {self.ngram_order})"
            )


@dataclass(frozen=True, kw_only=True)
class DetectorExperiment(SeededExperiment):
    """Views x seeds; each seed draws conversations of its own.

    data: its training conversations serve to fit the n-gram model (the first `model_conversations`) and to calibrate
    (the others); its validation conversations to measure errors. Its own seed is replaced by the experiment's.
    known_sentence_share: of all sentences, those that the model may know; the others it hears in calibration for the
    first time, as it will whatever a backbone says.
    excerpt_s: the start of each validation conversation, into which each kind of damage is planted. onset_between_s:
    the earliest and latest second at which it may begin. tolerated_onset_s: how wrong a named onset may be.
    """

    views: tuple[View, ...]
    data: ConversationSpec
    model_conversations: int
    known_sentence_share: float
    false_alarms_per_hour: float
    windows_to_raise: int
    excerpt_s: float
    onset_between_s: tuple[float, float]
    tolerated_onset_s: float

    def __post_init__(self) -> None:
        names = [view.name for view in self.views]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"views need different names, got {names}")
        if not 0 < self.model_conversations < self.data.conversations or not self.data.validation_conversations:
            raise ValueError(
                f"of {self.data.conversations} training conversations {self.model_conversations} are for the model, "
                f"which must leave some to calibrate; {self.data.validation_conversations} are for validation, which "
                "takes at least one"
            )
        if not 0 < self.known_sentence_share < 1:
            raise ValueError(f"known_sentence_share must be between 0 and 1, got {self.known_sentence_share}")
        early, late = self.onset_between_s
        if not 0 < early < late < self.excerpt_s or not self.tolerated_onset_s > 0:
            raise ValueError(
                f"onsets lie between {early:g} and {late:g} s of an excerpt of {self.excerpt_s:g} s, in rising order, "
                f"and tolerated_onset_s is above 0 (is {self.tolerated_onset_s:g})"
            )

    @property
    def arm_names(self) -> tuple[str, ...]:
        return tuple(view.name for view in self.views)

    def view_named(self, name: str) -> View:
        """The view called `name`. Raises ValueError, with those there are, when there is none."""
        for view in self.views:
            if view.name == name:
                return view
        raise ValueError(f"{self.recipe} has no arm {name!r}; it has {', '.join(self.arm_names)}")

    def spec_of(self, seed: int) -> ConversationSpec:
        """The conversations of one seed; all seeds share their pool of sentences."""
        return dataclasses.replace(self.data, seed=seed)

    def of_arm(self, name: str) -> dict[str, Any]:
        """What one arm's result depends on."""
        plain = plain_values(self)
        del plain["views"], plain["seed_count"]
        return plain | {"view": plain_values(self.view_named(name)), "data": plain_values(self.spec_of(self.seed))}
