"""The command that writes the page of model cards."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.cards.page import PAGE, render_page

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


def add_command(subparsers: Subparsers) -> None:
    """Adds `cards`, which sets `command`: a function from the parsed arguments to the exit code."""
    _options(subparsers.add_parser("cards", help="write the page of model cards"))


def main(arguments: list[str] | None = None) -> int:
    """The same as a command line of its own; 2 where a card cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m analysis.cards", description="Write the page of model cards.")
    _options(parser)
    given = parser.parse_args(arguments)
    try:
        return given.command(given)
    except ValueError as error:
        print(f"cards: {error}", file=sys.stderr)
        return 2


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, default=PAGE, help="the file to write (default: docs/models.md)")
    parser.set_defaults(command=_write)


def _write(given: argparse.Namespace) -> int:
    """Raises ValueError where a card cannot be read."""
    given.output.write_text(render_page(), encoding="utf-8")
    print(f"wrote {given.output}")
    return 0
