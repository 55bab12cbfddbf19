"""The card of a prepared set: card.json for programs, card.html for people, one page that needs no network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from experiments.recordings.card_facts import card_facts
from experiments.recordings.set_files import CARD_FILE, CARD_PAGE
from experiments.recordings.shards import write_whole
from experiments.recordings.source_files import Drop

TEMPLATE = "card.html"
MOST_RECORDINGS = 300
MOST_DROPS = 1000

_HISTOGRAMS = (
    ("turns_heard_s", "Turns that are heard"),
    ("turns_learned_s", "Turns that are learned"),
    ("pauses_s", "Pauses between turns"),
    ("conversations_s", "Conversations"),
)


def write_card(root: Path, drops: Sequence[Drop], ignored: dict[str, int]) -> dict[str, Any]:
    """Writes both files into the set's folder; gives what they say."""
    facts = card_facts(root, drops, ignored)
    write_whole(root / CARD_FILE, json.dumps(facts, indent=1).encode())
    write_whole(root / CARD_PAGE, card_page(facts).encode())
    return facts


def card_page(facts: dict[str, Any]) -> str:
    """The page as HTML. Beyond 300 recordings and 1,000 drops it says how many more card.json holds."""
    environment = Environment(
        loader=PackageLoader("experiments.recordings", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    bars = [(title, _bars(facts["lengths"][key])) for key, title in _HISTOGRAMS]
    return environment.get_template(TEMPLATE).render(
        facts=facts, bars=bars, most_recordings=MOST_RECORDINGS, most_drops=MOST_DROPS
    )


def _bars(counted: list[dict[str, Any]]) -> list[dict[str, Any]]:
    most = max(1, *(one["count"] for one in counted))
    return [{**one, "percent": 100 * one["count"] / most} for one in counted]
