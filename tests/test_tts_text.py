"""Text for speech: whole sentences out of any pieces, nothing lost, and clear words on what cannot be read."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backbones.tts.text import (
    cleaned,
    has_word,
    numbers_in_words,
    sentences,
    unreadable_characters,
    without_unreadable,
)

STORY = (
    'Dr. Smith paid $5.50 at 10:30 a.m. yesterday. "Did he?" she asked. See fig. 3, e.g. the U.S. one; 3.14 is near pi.'
    "\n\nA heading without a stop\n\nIt rained... Then, at last, it stopped! Nobody (not even Mr. Jones) knew. 你好。 "
    "Right?  Yes."
)
WHOLE = [
    "Dr. Smith paid $5.50 at 10:30 a.m. yesterday.",
    '"Did he?" she asked.',
    "See fig. 3, e.g. the U.S. one; 3.14 is near pi.",
    "A heading without a stop",
]


def _visible(text: str) -> str:
    return "".join(text.split())


def test_abbreviations_decimals_and_headings_are_no_ends_but_stops_are() -> None:
    assert list(sentences([STORY]))[:4] == WHOLE


@given(st.lists(st.integers(1, 12), min_size=1, max_size=20))
@settings(max_examples=60, deadline=None)
def test_any_pieces_give_the_same_sentences(sizes: list[int]) -> None:
    pieces, start = [], 0
    while start < len(STORY):
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(STORY[start : start + size])
        start += size
    assert list(sentences(pieces)) == list(sentences([STORY]))


def test_a_sentence_comes_with_the_first_word_after_it_and_before_the_rest_is_asked_for() -> None:
    asked: list[str] = []

    def tokens():
        for token in ["It is ", "3", ".", "14 ", "now. ", "Good ", "evening", "."]:
            asked.append(token)
            yield token

    stream = sentences(tokens())
    assert next(stream) == "It is 3.14 now."
    assert asked[-1] == "Good "
    assert list(stream) == ["Good evening."]


@given(st.text(alphabet="ab .,!?\n“é你。😀3", max_size=300), st.integers(20, 60))
@settings(max_examples=150, deadline=None)
def test_every_visible_character_comes_out_in_order_and_no_sentence_passes_the_limit(text: str, limit: int) -> None:
    parts = list(sentences([text], limit_characters=limit))
    assert _visible("".join(parts)) == _visible(text)
    assert all(part.strip() and len(part) <= limit for part in parts)


def test_ten_thousand_characters_without_a_stop_are_cut_between_words() -> None:
    text = "several words without any stop, and on they go " * 210
    parts = list(sentences([text]))
    assert " ".join(parts) == " ".join(text.split())
    assert len(parts) >= 25 and max(map(len, parts)) <= 400
    assert all(part.endswith(",") for part in parts[:-1]), "after a comma where there is one"
    assert list(map(len, sentences(["x" * 1000]))) == [400, 400, 200]


def test_a_limit_that_leaves_no_room_is_refused() -> None:
    with pytest.raises(ValueError, match="20 characters or more"):
        list(sentences(["hello"], limit_characters=3))


def test_text_is_cleaned_of_what_is_invisible_and_typographic() -> None:
    assert cleaned("a\u200bb\u00a0ﬁn\x00 “q” — it’s … １２ ") == 'ab fin "q", it\'s ... 12'


def test_what_no_voice_of_a_language_reads_is_named_and_can_be_left_out() -> None:
    text = "Naïve café, 5 €: 😀 你好 Привет"
    assert unreadable_characters(text, "en-us") == ["😀", "你", "好", "П", "р", "и", "в", "е", "т"]
    assert unreadable_characters(text, "ru") == ["😀", "你", "好"]
    assert unreadable_characters("日本語 カナ ひら", "ja") == []
    assert without_unreadable(text, "en-us") == "Naïve café, 5 €:"
    assert has_word("5") and not has_word("... !? -")


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("$5.50 or €1,000", "five dollars, fifty cents or one thousand euro"),
        ("at 10:30, 16:05 and 9:00", "at ten thirty, sixteen oh five and nine o'clock"),
        ("the 2nd of 1,234", "the second of one thousand, two hundred and thirty-four"),
        ("in 1999 and 2026", "in nineteen ninety-nine and twenty twenty-six"),
        ("3.14, -7, 25% and 007", "three point one four, minus seven, twenty-five percent and zero zero seven"),
        ("B2B and v1.2.3", "B2B and v1.2.3"),
    ],
)  # fmt: skip
def test_english_numbers_are_spelled_out_by_their_kind(written: str, spoken: str) -> None:
    assert numbers_in_words(written) == spoken
    assert numbers_in_words(written, "de") == written
