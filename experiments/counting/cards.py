"""A published model's card as this room needs it: dimensions to build from, and facts to look up."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backbones import published

CARD_FOLDER = Path(published.__file__).parent
DIGEST_CHARACTERS = 12


@dataclass(frozen=True, kw_only=True)
class Card:
    """hosts: the family of the language model. decoder: its dimensions. parts: the rest, each with name and kind."""

    name: str
    hosts: str
    decoder: Mapping[str, Any]
    parts: tuple[Mapping[str, Any], ...]
    facts: Mapping[str, Any]

    def number(self, fact: str) -> float | None:
        """The fact's value; None where it is unknown, or there is no such thing in this model."""
        entry = self.facts[fact]
        value = entry["value"] if isinstance(entry, dict) else entry
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return float(value) if is_number else None

    def part(self, kind: str) -> Mapping[str, Any] | None:
        """The first part of a kind."""
        return next((part for part in self.parts if part["kind"] == kind), None)


def read_card(file: str, folder: Path = CARD_FOLDER) -> Card:
    """The card in a file of `backbones/published`. Raises ValueError for a file that is not there."""
    content = tomllib.loads(_bytes_of(file, folder).decode())
    fields = ("name", "hosts", "decoder", "facts")
    return Card(**{field: content[field] for field in fields}, parts=tuple(content.get("parts", ())))


def card_digest(file: str, folder: Path = CARD_FOLDER) -> str:
    """Changes with any byte of the card's file."""
    return hashlib.sha256(_bytes_of(file, folder)).hexdigest()[:DIGEST_CHARACTERS]


def _bytes_of(file: str, folder: Path) -> bytes:
    path = folder / file
    if not path.is_file():
        raise ValueError(
            f"there is no card {path}; there are {', '.join(sorted(p.name for p in folder.glob('*.toml')))}"
        )
    return path.read_bytes()
