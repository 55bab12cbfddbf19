"""The command that writes the page of model cards."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.cards.page import PAGE, render_page

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


def add_command(subparsers: Subparsers) -> None:
    """Adds `cards`, which sets `command`: a function from the parsed arguments to the exit code."""
    parser = subparsers.add_parser("cards", help="write the page of model cards")
    parser.add_argument("--output", type=Path, default=PAGE, help="the file to write (default: docs/models.md)")
    parser.set_defaults(command=_write)


def _write(given: argparse.Namespace) -> int:
    """Raises ValueError where a card cannot be read."""
    given.output.write_text(render_page(), encoding="utf-8")
    print(f"wrote {given.output}")
    return 0
