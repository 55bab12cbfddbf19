"""Text for speech: whole sentences out of a stream of pieces, and what of a sentence a voice can read.

Splitting is sentencex's, numbers in words are num2words', scripts are those of Unicode (`regex`) and CLDR (`babel`).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator
from functools import lru_cache

import num2words
import regex
import sentencex
from babel.core import get_global

SENTENCE_LIMIT_CHARACTERS = 400
"""About 25 s of speech: what has no stop until here is cut at a word."""

# The splitter looks at the word after a stop. Scripts without spaces have no word to wait for: so many characters do.
_WORD_AFTER = regex.compile(r"\s*(?:\S+\s|\S{20})")
# It splits inside a quotation only where it is never closed, so an open one is waited for, but not longer than this.
_OPEN_QUOTATION_CHARACTERS = 120
_BRACKETS = ("“”", "«»", "()", "[]")
_LONGEST_PIECE_CHARACTERS = 1000  # what is split again with every piece stays this short
_CLAUSE_END = regex.compile(r"[,;:–—]\s")

_SCRIPTS_OF_WRITING = {"Jpan": ("Hani", "Hira", "Kana"), "Kore": ("Hang", "Hani"), "Hans": ("Hani",), "Hant": ("Hani",)}
_INVISIBLE = regex.compile(r"[\p{Cf}\uFE00-\uFE0F]")
_CONTROL = regex.compile(r"[\p{Z}\p{Cc}]+")
_WORDLIKE = regex.compile(r"[\p{L}\p{N}]")
_LONG_DASH = regex.compile(r"\s*—\s*")
_PLAIN_FORMS = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "…": "..."})

_CURRENCIES = {"$": "USD", "€": "EUR", "£": "GBP"}
_GROUPED = r"\d{1,3}(?:,\d{3})+|\d+"
_MONEY = regex.compile(rf"([$€£])\s?({_GROUPED})(?:\.(\d\d))?(?!\.?\d)")
_TIME_OF_DAY = regex.compile(r"\b([01]?\d|2[0-3]):([0-5]\d)\b")
_ORDINAL = regex.compile(r"\b(\d+)(?:st|nd|rd|th)\b")
_YEAR = regex.compile(r"\b(1[1-9]\d\d|20\d\d)\b(?![.,:%]?\d)")
_NUMBER = regex.compile(rf"(?<![\w.])(-?)({_GROUPED})(\.\d+)?")


def sentences(
    pieces: Iterable[str], language: str = "en", limit_characters: int = SENTENCE_LIMIT_CHARACTERS
) -> Iterator[str]:
    """Whole sentences, each as soon as the word after it has come; at the end of the pieces the rest.

    A sentence has its words as given, single spaces between them. One of more than `limit_characters` is cut after a
    comma or else a word, or where there is no space at all at the limit: every visible character comes out, in order.
    """
    if limit_characters < 20:
        raise ValueError(f"limit_characters is {limit_characters}; a sentence is cut at 20 characters or more")
    waiting = ""
    for piece in _short(pieces):
        waiting += piece
        whole, waiting = _split(waiting, language, limit_characters, ended=False)
        yield from whole
    whole, waiting = _split(waiting, language, limit_characters, ended=True)
    assert not waiting.strip()
    yield from whole


def cleaned(sentence: str) -> str:
    """The same words in plain characters: compatibility forms and typographic marks replaced, invisible ones gone."""
    plain = _LONG_DASH.sub(", ", _INVISIBLE.sub("", sentence)).translate(_PLAIN_FORMS)
    return _CONTROL.sub(" ", unicodedata.normalize("NFKC", plain)).strip()


def unreadable_characters(sentence: str, language: str) -> list[str]:
    """Characters of a cleaned sentence that no voice of `language` reads: other scripts, emoji, private characters."""
    return list(dict.fromkeys(_unreadable(language).findall(sentence)))


def without_unreadable(sentence: str, language: str) -> str:
    """A cleaned sentence without its `unreadable_characters`."""
    return " ".join(_unreadable(language).sub("", sentence).split())


def has_word(sentence: str) -> bool:
    """Is there a letter or a digit in it? Without one it can only be a pause."""
    return _WORDLIKE.search(sentence) is not None


def numbers_in_words(sentence: str, language: str = "en") -> str:
    """English numbers, years, ordinals, times of day and sums of money in words; other languages come back as given."""
    if language.split("-")[0] != "en":
        return sentence
    sentence = _MONEY.sub(_money_in_words, sentence)
    sentence = _TIME_OF_DAY.sub(_time_in_words, sentence)
    sentence = _ORDINAL.sub(lambda match: num2words.num2words(int(match[1]), to="ordinal"), sentence)
    sentence = _YEAR.sub(lambda match: num2words.num2words(int(match[1]), to="year"), sentence)
    return _NUMBER.sub(_number_in_words, sentence).replace("%", " percent")


def _short(pieces: Iterable[str]) -> Iterator[str]:
    for piece in [pieces] if isinstance(pieces, str) else pieces:
        for start in range(0, len(piece), _LONGEST_PIECE_CHARACTERS):
            yield piece[start : start + _LONGEST_PIECE_CHARACTERS]


def _split(text: str, language: str, limit: int, ended: bool) -> tuple[list[str], str]:
    """What of `text` is certainly whole, and the rest of it, which is empty or blank where the text has `ended`."""
    whole: list[str] = []
    while True:
        too_long = False
        for part in sentencex.segment(language, text):
            start = len(part) - len(part.lstrip())
            too_long = len(part.strip()) > limit
            if too_long:
                part = part[: start + _cut(part[start:], limit)]
            elif not ended and not _is_certain(text, len(part)):
                return whole, text
            text = text[len(part) :]
            if part.strip():
                whole.append(" ".join(part.split()))
            if too_long:
                break  # what follows the cut is split anew
        if not too_long:
            return whole, text


def _is_certain(text: str, end: int) -> bool:
    """Can nothing that may still follow `text` undo the sentence that ends at `end`?"""
    is_open = text.count('"') % 2 or any(text.count(left) > text.count(right) for left, right in _BRACKETS)
    return _WORD_AFTER.match(text, end) is not None and (not is_open or len(text) - end > _OPEN_QUOTATION_CHARACTERS)


def _cut(text: str, limit: int) -> int:
    """Where a text longer than `limit` is cut: after a clause of its second half, a word, or right at the limit."""
    head = text[: limit + 1]
    clause_ends = [match.end() for match in _CLAUSE_END.finditer(head, limit // 2)]
    if clause_ends:
        return clause_ends[-1]
    word_ends = [match.end() for match in regex.finditer(r"\s+", head)]
    return min(word_ends[-1], limit) if word_ends else limit


@lru_cache
def _unreadable(language: str) -> regex.Pattern[str]:
    """Matches what voices of a language do not read: letters that are neither Latin nor of its own scripts, and emoji.

    Of a language that CLDR does not know, any letter is taken.
    """
    tags = str(get_global("likely_subtags").get(language.split("-")[0], "")).split("_")
    letters = r"\p{L}\p{M}"
    if len(tags) == 3:
        scripts = ("Latn", "Zinh", *_SCRIPTS_OF_WRITING.get(tags[1], (tags[1],)))  # Zinh: marks of any script
        letters = "".join(rf"\p{{Script={script}}}" for script in scripts)
    return regex.compile(rf"[^{letters}\p{{P}}\p{{Sc}}\p{{Sm}}\p{{N}}\p{{Z}}°©®™^`ªº]")


def _money_in_words(match: regex.Match[str]) -> str:
    amount = float(f"{match[2].replace(',', '')}.{match[3] or '00'}")  # num2words takes an int for cents
    spoken = num2words.num2words(amount, to="currency", currency=_CURRENCIES[match[1]])
    return spoken if match[3] else spoken.rpartition(", ")[0]  # without "zero cents"


def _time_in_words(match: regex.Match[str]) -> str:
    hour, minute = int(match[1]), int(match[2])
    spoken = num2words.num2words(hour)
    if not minute:
        return f"{spoken} o'clock"
    return f"{spoken} {'oh ' if minute < 10 else ''}{num2words.num2words(minute)}"


def _number_in_words(match: regex.Match[str]) -> str:
    digits = match[2].replace(",", "")
    is_code = len(digits) > 9 or (digits[0] == "0" and digits != "0")  # said digit by digit: 007, card numbers
    whole = _digit_by_digit(digits) if is_code else num2words.num2words(int(digits))
    return ("minus " if match[1] else "") + whole + (f" point {_digit_by_digit(match[3][1:])}" if match[3] else "")


def _digit_by_digit(digits: str) -> str:
    return " ".join(num2words.num2words(int(digit)) for digit in digits)
