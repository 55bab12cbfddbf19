"""What is said: a pool of distinct sentences about facts, and small talk in between.

Everything is enumerated, nothing is random, so a sentence can be spoken once and used in any number of conversations.
No word of a fact's value or subject occurs in small talk: a fact's last mention is known exactly.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from backbones.speech.espeak import EspeakVoice
from experiments.data.spec import ConversationSpec, FactPhrasing

Speaker = Literal["user", "assistant"]

COLOURS = ("red", "blue", "green", "white", "black", "yellow", "purple", "silver")
OBJECTS = ("box", "door", "ladder", "bottle", "drawer", "lamp", "basket", "key", "jar", "tent", "boat", "chair")
# fmt: off
VALUES = (
    "tiger", "lemon", "copper", "violin", "rocket", "pepper", "castle", "magnet",
    "window", "garlic", "dragon", "button", "carpet", "walnut", "helmet", "parrot",
    "candle", "anchor", "ginger", "pocket", "marble", "turtle", "saddle", "velvet",
    "hammer", "spider", "cactus", "pencil", "rabbit", "mirror", "whistle", "banjo",
    "island", "pigeon", "kettle", "zebra", "almond", "feather", "compass", "lantern",
    "diamond", "tomato", "falcon", "barrel", "sparrow", "needle", "cherry", "wizard",
    "penguin", "ribbon", "vinegar", "trumpet", "blanket", "lobster", "shadow", "peanut",
    "monkey", "orchid", "beetle", "camel", "ivory", "puzzle", "napkin", "oyster",
)
# fmt: on


@dataclass(frozen=True, kw_only=True)
class _Phrasing:
    """How facts are told and asked for: statements and questions come in variants, the rest in one form."""

    statements: tuple[str, ...]
    questions: tuple[str, ...]
    request: str
    echo: str
    answer: str


_PHRASINGS: dict[FactPhrasing, _Phrasing] = {
    "sentence": _Phrasing(
        statements=("The word for the {subject} is {value}.", "Remember, the word for the {subject} is {value}."),
        questions=("What is the word for the {subject}?", "Do you still know the word for the {subject}?"),
        request="Please choose a word for the {subject}.",
        echo="Okay, the word for the {subject} is {value}.",
        answer="The word for the {subject} is {value}.",
    ),
    "brief": _Phrasing(
        statements=("The {subject}, {value}.",),
        questions=("The {subject}?",),
        request="A word for {subject}.",
        echo="Okay, {subject} {value}.",
        answer="Yes, {subject} {value}.",
    ),
}

_TOPICS: tuple[tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]], ...] = (
    # (what fills the gap, lines of the user, lines of the assistant)
    (
        ("Paris", "Lisbon", "Oslo", "Kyoto", "Boston"),
        (
            "I am thinking of going to {x} in the spring.",
            "Have you heard anything good about {x}?",
            "My sister moved to {x} last year, and she keeps telling me that I should come and stay for a while.",
            "How long is the train to {x}?",
        ),
        (
            "{x} is lovely at that time of the year.",
            "I hear that {x} gets busy, so book early.",
            "If you go to {x}, take good shoes. Most of the old town is best seen on foot, and it has a lot of hills.",
        ),
    ),
    (
        ("soup", "bread", "pasta", "curry", "salad"),
        (
            "I made {x} for lunch today.",
            "Do you know a quick way to make {x}?",
            "We had some {x} at the new place around the corner, and honestly I could eat it every day.",
            "Too much {x} again.",
        ),
        (
            "Fresh {x} is hard to beat.",
            "For {x}, use less salt than you think.",
            "A good {x} takes time. Start early, keep the heat low, and taste it more often than you think.",
        ),
    ),
    (
        ("rain", "wind", "snow", "fog", "heat"),
        (
            "There was so much {x} this morning.",
            "Will the {x} last until the weekend?",
            "I do not mind the {x}, but the dog will not go out in it.",
        ),
        (
            "The {x} should be gone by tomorrow.",
            "With this {x}, I would stay at home.",
            "The forecast says {x} for two more days, then it clears up, and by Sunday you may even see some sun.",
        ),
    ),
    (
        ("jazz", "opera", "folk", "techno", "blues"),
        (
            "I have been listening to {x} all week.",
            "Can you recommend some {x}?",
            "My neighbour plays {x} late at night, and the walls are thin.",
        ),
        (
            "There is a lot of good {x} around.",
            "Start with the old {x} records.",
            "People say {x} is an acquired taste, but give it one quiet evening and you will hear what they mean.",
        ),
    ),
    (
        ("meeting", "report", "budget", "schedule", "training"),
        (
            "The {x} took the whole morning.",
            "I still have to finish the {x}.",
            "My manager wants the {x} to be shorter, but every time I take something out she asks me where it went.",
        ),
        (
            "The {x} can wait until tomorrow.",
            "Then do the {x} first and rest later.",
            "Write down three points for the {x}, say them slowly, and nobody will miss the others.",
        ),
    ),
    (
        ("",),
        ("Hm.", "Right.", "Okay then.", "Let me think.", "Just a second.", "I see.", "Yes, exactly.", "Never mind."),
        ("Sure.", "Go on.", "Of course.", "Take your time.", "I am listening.", "No problem.", "Whenever you like."),
    ),
)


@dataclass(frozen=True, kw_only=True)
class Fact:
    """The word for a subject: what is stated and asked for."""

    subject: str
    value: str


@dataclass(frozen=True, kw_only=True)
class Sentence:
    """One distinct thing that one of the two can say. `fact` is what it tells; None where it tells nothing."""

    speaker: Speaker
    text: str
    fact: Fact | None = None


@dataclass(frozen=True, kw_only=True)
class SentencePool:
    """Every sentence of a data set, by what it is for."""

    phrasing: FactPhrasing
    subjects: tuple[str, ...]
    values: tuple[str, ...]
    small_talk: tuple[tuple[tuple[Sentence, ...], tuple[Sentence, ...]], ...]
    """Per topic: lines of the user, lines of the assistant that go with any of them. The last topic is the shortest."""

    def statement(self, fact: Fact) -> Sentence:
        return _told("user", _pick(_PHRASINGS[self.phrasing].statements, fact.subject + fact.value), fact)

    def echo(self, fact: Fact) -> Sentence:
        return _told("assistant", _PHRASINGS[self.phrasing].echo, fact)

    def answer(self, fact: Fact) -> Sentence:
        return _told("assistant", _PHRASINGS[self.phrasing].answer, fact)

    def question(self, subject: str) -> Sentence:
        return Sentence(
            speaker="user", text=_pick(_PHRASINGS[self.phrasing].questions, subject).format(subject=subject)
        )

    def request(self, subject: str) -> Sentence:
        return Sentence(speaker="user", text=_PHRASINGS[self.phrasing].request.format(subject=subject))

    def sentences(self) -> list[Sentence]:
        """All of them, in a fixed order."""
        every: list[Sentence] = []
        for subject, value in itertools.product(self.subjects, self.values):
            fact = Fact(subject=subject, value=value)
            every += [self.statement(fact), self.echo(fact), self.answer(fact)]
        for subject in self.subjects:
            every += [self.question(subject), self.request(subject)]
        for user_lines, assistant_lines in self.small_talk:
            every += [*user_lines, *assistant_lines]
        return every


def sentence_pool(spec: ConversationSpec) -> SentencePool:
    """The sentences that conversations of this spec are put together from."""
    topics = [
        (_fill(user_lines, gap_words), _fill(assistant_lines, gap_words))
        for gap_words, user_lines, assistant_lines in _TOPICS
    ]
    user_counts = _shares([len(user) for user, _ in topics], spec.small_talk)
    assistant_counts = _shares([len(assistant) for _, assistant in topics], spec.small_talk)
    return SentencePool(
        phrasing=spec.fact_phrasing,
        subjects=_subjects(spec),
        values=VALUES[: spec.values],
        small_talk=tuple(
            (
                tuple(Sentence(speaker="user", text=text) for text in _spread(user, user_count)),
                tuple(Sentence(speaker="assistant", text=text) for text in _spread(assistant, assistant_count)),
            )
            for (user, assistant), user_count, assistant_count in zip(
                topics, user_counts, assistant_counts, strict=True
            )
        ),
    )


def utterance_id(text: str, voice: EspeakVoice, engine: str = "espeak-ng") -> str:
    """Address of what a sentence sounds like: the same engine, voice and text are the same utterance."""
    key = f"{engine}|{voice.name}|{voice.words_per_minute}|{voice.pitch}|{text}"
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def _told(speaker: Speaker, template: str, fact: Fact) -> Sentence:
    return Sentence(speaker=speaker, text=template.format(subject=fact.subject, value=fact.value), fact=fact)


def _pick(templates: tuple[str, ...], key: str) -> str:
    """One of the templates, always the same for a key: variety that costs no further sentences."""
    return templates[hashlib.sha256(key.encode()).digest()[0] % len(templates)]


def _subjects(spec: ConversationSpec) -> tuple[str, ...]:
    if spec.subject_words == 1:
        return OBJECTS[: spec.subjects]
    # The squarest grid: neither the colour nor the object alone tells the subject.
    colours = min(len(COLOURS), math.ceil(math.sqrt(spec.subjects)))
    objects = math.ceil(spec.subjects / colours)
    grid = [f"{colour} {thing}" for thing, colour in itertools.product(OBJECTS[:objects], COLOURS[:colours])]
    return tuple(grid[: spec.subjects])


def _fill(templates: Iterable[str], gap_words: Iterable[str]) -> list[str]:
    words = list(gap_words)
    return list(dict.fromkeys(_capitalised(t.format(x=word)) for t in templates for word in words))


def _capitalised(text: str) -> str:
    return text[0].upper() + text[1:]


def _shares(available: list[int], wanted: int) -> list[int]:
    """How many lines each topic gives: as equal as what they have allows, at least one each."""
    counts = [0] * len(available)
    for _ in range(min(wanted, sum(available))):
        open_topics = [i for i, have in enumerate(available) if counts[i] < have]
        counts[min(open_topics, key=lambda i: counts[i])] += 1
    return counts


def _spread(lines: list[str], count: int) -> list[str]:
    """`count` of the lines at even steps, so that short and long forms are both kept."""
    return [lines[i * len(lines) // count] for i in range(count)]
