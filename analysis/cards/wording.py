"""Values as the page writes them: numbers with units, yes and no, bytes, shares of a claimed number."""

from __future__ import annotations

import re

from analysis.cards.schema import NONE, UNKNOWN, Card, Fact, Value


def in_words(value: Value, unit: str = "") -> str:
    """`true` as yes, 131072 as 131,072, a whole float without its point; the unit where there is a number."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    return f"{number_in_words(float(value))} {unit}".rstrip()


def number_in_words(number: float) -> str:
    """Three figures at least, and no more of the fraction than that needs."""
    if number >= 1e8:
        return f"{number / 1e9:.2f} billion"
    if number >= 1e6:
        return f"{number / 1e6:.1f} million"
    if number == int(number):
        return f"{int(number):,}"
    return f"{number:,.0f}" if number >= 1000 else f"{number:.3g}"


def bytes_in_words(fact: Fact) -> str:
    """Bytes in the largest binary unit that leaves at least one of it."""
    if fact.number is None:
        return in_words(fact.value)
    size, units = fact.number, ["B", "KiB", "MiB", "GiB"]
    while size >= 1024 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f"{number_in_words(size)} {units[0]}"


def duration_in_words(minutes: Fact) -> str:
    """Minutes below two hours, hours above."""
    if minutes.number is None:
        return in_words(minutes.value)
    if minutes.number >= 120:
        return f"{minutes.number / 60:.2f} h"
    return f"{minutes.number:.2f} min"


def both_in_words(card: Card, heard: str, said: str) -> str:
    """Two facts as `heard / said`, once where they are the same thing."""
    first, second = (in_words(card.facts[name].value) for name in (heard, said))
    return first if card.facts["shares_positions"].value is True and first == second else f"{first} / {second}"


def source_in_words(source: str) -> str:
    """An address as a link that is named by what it leads to; other sources as they are."""
    found = re.match(r"https://[^\s;,]+", source)
    if found is None:
        return source
    name = re.sub(r"^(github\.com|huggingface\.co)/|blob/(main|[0-9a-f]{40})/", "", found[0].removeprefix("https://"))
    return f"[{name}]({found[0]}){source[found.end() :]}"


def against(found: Fact, claimed: float) -> str:
    """What is found as a multiple of what is claimed."""
    if found.number is None:
        return "-" if found.value in (NONE, UNKNOWN) else "no number"
    return f"{found.number / claimed:.2f}"
