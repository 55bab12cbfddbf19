"""Conversations drawn by seed: facts stated, asked for later at distances of every size, and small talk in between.

A conversation is a list of exchanges, each a turn of the user and a turn of the assistant. Every subject lives through
its own sequence of events: it is given a value, asked for, asked for again, perhaps given another value. After each
event the distance to the next one is drawn: first the bucket (0 to 256 positions, to 1,024, to 4,096, and so on by
factors of four), every bucket that still fits equally likely, then the distance within it log-uniformly. So far recalls
are as frequent as near ones, and distances are about log-uniform. The latest value of a subject holds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from experiments.data.spec import ConversationSpec
from experiments.data.text import Fact, Sentence, SentencePool, Speaker

Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = ("train", "validation")

_NEAREST_DISTANCE = 16
_FIRST_BUCKET = 256
_FACTS_BEGIN_WITHIN = 0.25  # of a conversation: later, and no fact could be asked for at a distance of most of it


def distance_buckets(positions: int) -> list[tuple[int, int]]:
    """Half-open ranges of recall distance, by factors of four: (0, 256), (256, 1024), ... up to `positions`."""
    edges = [0, _FIRST_BUCKET]
    while edges[-1] < positions:
        edges.append(4 * edges[-1])
    edges[-1] = max(positions, _FIRST_BUCKET)
    return list(itertools.pairwise(edges))


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a sentence costs: positions of its whole turn, markers included, and seconds of speech."""

    utterance_id: str
    positions: int
    duration_s: float


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One utterance in its place. Times are seconds from the start of the conversation.

    fact_stated, fact_asked: index into `Conversation.facts` of the fact this turn tells (the user's statement and the
    assistant's echo of it), or asks for or recalls (the user's question and the assistant's answer); else None.
    """

    speaker: Speaker
    text: str
    utterance_id: str
    start_s: float
    end_s: float
    fact_stated: int | None = None
    fact_asked: int | None = None


@dataclass(frozen=True, kw_only=True)
class ConversationFact:
    """A subject's value from the turn that states it on. stated_turn is echo_turn where the assistant stated it first.

    echo_turn: the assistant's turn that says it for the first time. asked_turns: the assistant's turns that recall it.
    """

    subject: str
    value: str
    stated_turn: int
    echo_turn: int
    asked_turns: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """Turns in order, user and assistant in alternation, and the facts that they tell and ask for."""

    name: str
    split: Split
    turns: tuple[Turn, ...]
    facts: tuple[ConversationFact, ...]

    @property
    def duration_s(self) -> float:
        return self.turns[-1].end_s

    @property
    def begins_here(self) -> bool:
        """Whether its first turn begins a conversation: a piece of a longer one may go on with the one before."""
        return True


@dataclass
class _Subject:
    """Where one subject stands while a conversation is drawn."""

    name: str
    due: float
    value: str | None = None
    fact_index: int = -1
    was_asked: bool = False


@dataclass
class _Draft:
    position: int = 1  # the conversation's <bos>
    time_s: float = 0.0
    turns: list[Turn] = field(default_factory=list)
    facts: list[ConversationFact] = field(default_factory=list)


def draw_conversation(
    spec: ConversationSpec, pool: SentencePool, measure: Callable[[Sentence], Measured], split: Split, index: int
) -> Conversation:
    """Conversation `index` of a split: whole exchanges, as many as fit into `spec.positions`."""
    rng = np.random.default_rng([spec.seed, SPLITS.index(split), index])
    draft = _Draft()
    subjects = _subjects_with_first_dues(spec, pool, rng)
    while True:
        first = min(subjects, key=lambda s: s.due)
        is_due = first.due <= draft.position
        share = spec.event_share if is_due else spec.early_share
        if math.isfinite(first.due) and share and rng.random() < share:
            if not _add_event(spec, pool, measure, draft, first, rng):
                break
        elif not _add_small_talk(spec, pool, measure, draft, rng):
            break
    while _add_small_talk(spec, pool, measure, draft, rng):
        pass
    return Conversation(name=f"{split}-{index:05d}", split=split, turns=tuple(draft.turns), facts=tuple(draft.facts))


def _subjects_with_first_dues(spec: ConversationSpec, pool: SentencePool, rng: np.random.Generator) -> list[_Subject]:
    names = list(pool.subjects)
    if spec.subjects_per_conversation is not None:
        names = [str(name) for name in rng.choice(names, spec.subjects_per_conversation, replace=False)]
    dues = rng.random(len(names)) * _FACTS_BEGIN_WITHIN * spec.positions
    dues[rng.integers(len(dues))] = 0.0
    return [_Subject(name=name, due=float(due)) for name, due in zip(names, dues, strict=True)]


def _add_event(
    spec: ConversationSpec,
    pool: SentencePool,
    measure: Callable[[Sentence], Measured],
    draft: _Draft,
    subject: _Subject,
    rng: np.random.Generator,
) -> bool:
    """State or ask for the subject's fact; False when the exchange does not fit any more."""
    states = subject.value is None or (subject.was_asked and rng.random() < spec.restate_probability)
    if states:
        value = str(rng.choice([v for v in pool.values if v != subject.value]))
        fact = Fact(subject=subject.name, value=value)
        user_states = spec.fact_stated_by == "user" or (spec.fact_stated_by == "both" and rng.random() < 0.5)
        exchange = (pool.statement(fact) if user_states else pool.request(subject.name), pool.echo(fact))
    else:
        assert subject.value is not None
        fact = Fact(subject=subject.name, value=subject.value)
        exchange = (pool.question(subject.name), pool.answer(fact))
    costs = (measure(exchange[0]), measure(exchange[1]))
    if draft.position + costs[0].positions + costs[1].positions > spec.positions:
        return False
    user_turn = len(draft.turns)
    if states:
        subject.value, subject.was_asked, subject.fact_index = fact.value, False, len(draft.facts)
        stated_turn = user_turn if exchange[0].fact else user_turn + 1
        draft.facts.append(
            ConversationFact(
                subject=fact.subject, value=fact.value, stated_turn=stated_turn, echo_turn=user_turn + 1, asked_turns=()
            )
        )
        user_fact = subject.fact_index if exchange[0].fact else None
        _add_turn(spec, draft, exchange[0], costs[0], rng, fact_stated=user_fact)
        _add_turn(spec, draft, exchange[1], costs[1], rng, fact_stated=subject.fact_index)
    else:
        subject.was_asked = True
        known = draft.facts[subject.fact_index]
        draft.facts[subject.fact_index] = ConversationFact(
            subject=known.subject,
            value=known.value,
            stated_turn=known.stated_turn,
            echo_turn=known.echo_turn,
            asked_turns=(*known.asked_turns, user_turn + 1),
        )
        for sentence, cost in zip(exchange, costs, strict=True):
            _add_turn(spec, draft, sentence, cost, rng, fact_asked=subject.fact_index)
    subject.due = draft.position + _draw_distance(spec.positions - draft.position, spec.positions, rng)
    return True


def _add_small_talk(
    spec: ConversationSpec,
    pool: SentencePool,
    measure: Callable[[Sentence], Measured],
    draft: _Draft,
    rng: np.random.Generator,
) -> bool:
    """Add an exchange of one topic; near the end, the longest of the short ones that fits. False when none does."""
    user_lines, assistant_lines = pool.small_talk[rng.integers(len(pool.small_talk))]
    pair = (user_lines[rng.integers(len(user_lines))], assistant_lines[rng.integers(len(assistant_lines))])
    room = spec.positions - draft.position
    if sum(measure(sentence).positions for sentence in pair) > room:
        short_users, short_assistants = pool.small_talk[-1]
        fitting = [(measure(u).positions + measure(a).positions, u, a) for u in short_users for a in short_assistants]
        fitting = [candidate for candidate in fitting if candidate[0] <= room]
        if not fitting:
            return False
        pair = max(fitting, key=lambda candidate: candidate[0])[1:]
    for sentence in pair:
        _add_turn(spec, draft, sentence, measure(sentence), rng)
    return True


def _add_turn(
    spec: ConversationSpec,
    draft: _Draft,
    sentence: Sentence,
    cost: Measured,
    rng: np.random.Generator,
    fact_stated: int | None = None,
    fact_asked: int | None = None,
) -> None:
    pause_s = float(np.clip(spec.pause_median_s * math.exp(spec.pause_spread * rng.standard_normal()), 0.1, 3.0))
    start_s = round(draft.time_s + pause_s, 3)
    end_s = round(start_s + cost.duration_s, 6)
    draft.turns.append(
        Turn(
            speaker=sentence.speaker,
            text=sentence.text,
            utterance_id=cost.utterance_id,
            start_s=start_s,
            end_s=end_s,
            fact_stated=fact_stated,
            fact_asked=fact_asked,
        )
    )
    draft.position += cost.positions
    draft.time_s = end_s


def _draw_distance(room: int, positions: int, rng: np.random.Generator) -> float:
    """Positions until a subject's next event; infinite when no event fits into `room`."""
    buckets = [(max(low, _NEAREST_DISTANCE), min(high, room)) for low, high in distance_buckets(positions)]
    buckets = [(low, high) for low, high in buckets if low < high]
    if not buckets:
        return math.inf
    low, high = buckets[rng.integers(len(buckets))]
    return low * (high / low) ** rng.random()
