"""`python -m analysis COMMAND` (--help lists them): what follows from the runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from analysis import commands
from analysis.cards.command import add_command as add_cards
from analysis.checklist.command import add_command as add_checklist
from analysis.dashboard.command import add_command as add_dashboard
from analysis.decide.command import add_command as add_decide
from analysis.listening.command import add_commands as add_listening
from analysis.report.command import add_command as add_report


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 1 not verified, 2 a mistake in the command or something that cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m analysis", description=__doc__)
    subparsers = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    commands.add_commands(subparsers)
    add_cards(subparsers)
    add_decide(subparsers)
    add_report(subparsers)
    add_checklist(subparsers)
    add_dashboard(subparsers)
    add_listening(subparsers)
    parsed = parser.parse_args(arguments)
    try:
        return parsed.command(parsed)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
