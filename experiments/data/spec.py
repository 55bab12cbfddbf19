"""What a set of synthetic conversations is made from: everything that changes a byte of it, and nothing else."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from backbones.speech.espeak import EspeakVoice, check_number

FORMAT_VERSION = 1
"""Raised whenever the same spec would give other data: older caches are then rebuilt, never misread."""

MAX_SUBJECTS = 96
MAX_VALUES = 64
MIN_POSITIONS = 128

FactPhrasing = Literal["sentence", "brief"]
FactSource = Literal["user", "assistant", "both"]

_POOL_FIELDS = (
    "subjects",
    "subject_words",
    "values",
    "fact_phrasing",
    "small_talk",
    "user_voice",
    "assistant_voice",
    "n_mels",
    "unit_vocab_size",
    "unit_fit_utterances",
    "text_vocab_size",
)


@dataclass(frozen=True, kw_only=True)
class ConversationSpec:
    """Identity of a data set.

    positions: length of a conversation in positions of the language model (speech at 10 Hz, text tokens, markers).
    conversations, validation_conversations: how many of each split; both are drawn from one pool of sentences, by
        different random streams.
    seed: draws the conversations; the pool of sentences does not depend on it.
    subjects, values: how many things a fact can be about, and how many words its value is drawn from (uniformly, so
        that guessing is right once in `values`). subject_words: 2 for "red box", 1 for "box" (easier to learn).
    fact_phrasing: "sentence" for whole sentences, "brief" for three words ("Okay, box tiger."): more facts a minute.
    fact_stated_by: who brings a fact up first. "user": it must be heard, then the assistant repeats it. "assistant":
        the user asks it to choose. "both": either, by a fair coin.
    restate_probability: chance that a fact that falls due is given a new value instead of being asked for.
    event_share: chance that a fact that is due is taken up now, not after more small talk.
    early_share: chance that, with no fact due, the next one is taken up early instead of small talk: many recalls
        at short distances, for learning to recall at all.
    subjects_per_conversation: how many of the subjects one conversation is about, drawn anew for each; None: all.
    small_talk: distinct small-talk lines of the user, and as many of the assistant.
    pause_median_s, pause_spread: silence before a turn is log-normal with this median and this sigma, 0.1 to 3 s.
    n_mels: 80 or 128. unit_vocab_size: k-means clusters, fitted on `unit_fit_utterances` sentences spread over the
        pool. text_vocab_size: upper bound of the text vocabulary, special tokens and 256 bytes included.
    """

    positions: int = 8192
    conversations: int = 64
    validation_conversations: int = 8
    seed: int = 0
    subjects: int = 24
    subject_words: Literal[1, 2] = 2
    values: int = 40
    fact_phrasing: FactPhrasing = "sentence"
    fact_stated_by: FactSource = "both"
    restate_probability: float = 0.15
    event_share: float = 0.8
    early_share: float = 0.0
    subjects_per_conversation: int | None = None
    small_talk: int = 80
    user_voice: EspeakVoice = field(default_factory=lambda: EspeakVoice(language="en-us", variant="m3"))
    assistant_voice: EspeakVoice = field(default_factory=lambda: EspeakVoice(language="en-us", variant="f3"))
    pause_median_s: float = 0.35
    pause_spread: float = 0.5
    n_mels: int = 80
    unit_vocab_size: int = 200
    unit_fit_utterances: int = 300
    text_vocab_size: int = 1024

    def __post_init__(self) -> None:
        for name in ("user_voice", "assistant_voice"):
            if not isinstance(getattr(self, name), EspeakVoice):
                raise ValueError(f"{name} must be an EspeakVoice, got {getattr(self, name)!r}")
        for name in ("n_mels", "subject_words"):
            check_number(name, getattr(self, name), whole=True)
        if self.subjects_per_conversation is not None:
            check_number("subjects_per_conversation", self.subjects_per_conversation, whole=True)
        most_subjects = MAX_SUBJECTS if self.subject_words == 2 else 12
        for name, low, high in (
            ("positions", MIN_POSITIONS, 1 << 24),
            ("conversations", 1, 1 << 24),
            ("validation_conversations", 0, 1 << 24),
            ("seed", 0, 1 << 62),
            ("subjects", 1, most_subjects),
            ("subject_words", 1, 2),
            ("values", 2, MAX_VALUES),
            ("small_talk", 12, 80),
            ("unit_vocab_size", 2, 1 << 15),
            ("unit_fit_utterances", 1, 1 << 24),
            ("text_vocab_size", 320, 1 << 16),
            ("restate_probability", 0.0, 1.0),
            ("event_share", 0.05, 1.0),
            ("early_share", 0.0, 1.0),
            ("pause_median_s", 0.1, 3.0),
            ("pause_spread", 0.0, 2.0),
        ):
            given = getattr(self, name)
            check_number(name, given, whole=isinstance(low, int))
            if not low <= given <= high:
                raise ValueError(f"{name} is {given}; it must be {low} to {high}")
        if self.n_mels not in (80, 128):
            raise ValueError(f"n_mels is {self.n_mels}; whisper bundles filters for 80 and 128")
        if self.subjects_per_conversation is not None and not 1 <= self.subjects_per_conversation <= self.subjects:
            raise ValueError(
                f"subjects_per_conversation is {self.subjects_per_conversation}; it must be "
                f"1 to {self.subjects}, or none"
            )
        if self.fact_phrasing not in ("sentence", "brief"):
            raise ValueError(f"fact_phrasing is {self.fact_phrasing!r}; it must be 'sentence' or 'brief'")
        if self.fact_stated_by not in ("user", "assistant", "both"):
            raise ValueError(f"fact_stated_by is {self.fact_stated_by!r}; it must be 'user', 'assistant' or 'both'")
        if self.user_voice == self.assistant_voice:
            raise ValueError(
                f"user and assistant have the same voice {self.user_voice.name!r}; give them different ones"
            )

    @property
    def chance_recall(self) -> float:
        """How often a guess at a fact's value is right."""
        return 1 / self.values

    def as_dict(self) -> dict[str, Any]:
        return {"format_version": FORMAT_VERSION, **asdict(self)}

    def digest(self) -> str:
        """Name of this data set in a cache: 16 hex digits over every field."""
        return _digest(self.as_dict())

    def pool_as_dict(self) -> dict[str, Any]:
        fields = asdict(self)
        return {"format_version": FORMAT_VERSION, **{name: fields[name] for name in _POOL_FIELDS}}

    def pool_digest(self) -> str:
        """Name of the pool of sentences, which data sets of other lengths, seeds and sizes share."""
        return _digest(self.pool_as_dict())


def _digest(fields: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]
