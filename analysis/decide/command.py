"""The command that asks, or is told, what is needed, and prints what is known of every model."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.cards import read_cards
from analysis.cards.adapters import adapter_of
from analysis.cards.wording import in_words
from analysis.decide.answers import Answer, answers, what_follows
from analysis.decide.evidence import EVIDENCE, Measurement, about, read_evidence
from analysis.decide.needs import WHAT_DECIDES, Needs, add_flags, needs_from
from analysis.runs import SCALES

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


def add_command(subparsers: Subparsers) -> None:
    """Adds `decide`, which sets `command`: a function from the parsed arguments to the exit code."""
    parser = subparsers.add_parser("decide", help="which backbone? four questions, answered from evidence")
    add_flags(parser)
    parser.add_argument(
        "--evidence", type=Path, default=EVIDENCE, help="what was measured (default: evidence/tests.csv)"
    )
    parser.set_defaults(command=_decide)


def _decide(given: argparse.Namespace) -> int:
    """Raises ValueError for an answer that is missing or cannot be read, and for a file that cannot."""
    needs = needs_from(given, input if sys.stdin.isatty() else None)
    print(decision(needs, read_evidence(given.evidence)))
    return 0


def decision(needs: Needs, evidence: tuple[Measurement, ...]) -> str:
    """The whole answer as text: what is needed, what is known of each model, what follows; in the cards' order."""
    sections = [_needs_in_words(needs), _evidence_in_words(evidence)]
    summary: list[str] = []
    for card in read_cards():
        found = answers(card, adapter_of(card), about(card, evidence), needs)
        follows = what_follows(found, needs)
        sections.append("\n".join([f"\n{card.title}", *map(_answer_in_words, found), f"  what follows: {follows}"]))
        summary.append(f"  {card.title}: {follows}")
    return "\n".join([*sections, "\nWhat follows, in the cards' order, which is no ranking:", *summary])


def _needs_in_words(needs: Needs) -> str:
    return (
        f"Needed: real time {in_words(needs.real_time)}; first sound within {in_words(needs.latency_ms, 'ms')}; "
        f"speech to speech {in_words(needs.speech_to_speech)}; risk {needs.risk}: {WHAT_DECIDES[needs.risk]}."
    )


def _evidence_in_words(evidence: tuple[Measurement, ...]) -> str:
    if not evidence:
        return "Evidence: none; nothing has been measured yet, or `make findings` has not been run."
    counts = Counter(row.scale for row in evidence)
    scales = ", ".join(f"{counts[scale]} at scale {scale}" for scale in SCALES if scale in counts)
    return f"Evidence: {len(evidence)} measurements, {scales}. A smaller scale is no proof for the published size."


def _answer_in_words(answer: Answer) -> str:
    lines = [f"  {answer.question}: {answer.standing} ({answer.reason})"]
    for label, texts in (("known", answer.known), ("unknown", answer.unknown), ("measure", answer.measure)):
        lines += [f"    {label:8}{text}" for text in texts]
    return "\n".join(lines)
