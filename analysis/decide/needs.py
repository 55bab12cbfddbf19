"""The four questions: what is needed, as flags or as answers typed at a terminal."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

Risk = Literal["low", "medium", "high"]
RISKS: tuple[Risk, ...] = get_args(Risk)
WHAT_DECIDES: dict[Risk, str] = {
    "low": "only what was measured here at scale full decides",
    "medium": "where nothing was measured here at scale full, what the model's authors published decides too",
    "high": "smaller scales and the authors' word decide too, and what is unknown rules nothing out",
}


@dataclass(frozen=True, kw_only=True)
class Needs:
    """The answers. latency_ms: longest acceptable wait for the first sound after the question has ended."""

    real_time: bool
    latency_ms: float
    speech_to_speech: bool
    risk: Risk


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question. flag: its option. parse: an answer's value; raises ValueError that says what is expected."""

    name: str
    flag: str
    text: str
    answers: str
    parse: Callable[[str], object]


def _yes_or_no(given: str) -> bool:
    answers = {"yes": True, "y": True, "no": False, "n": False}
    if given.strip().lower() not in answers:
        raise ValueError(f"expected yes or no, got {given!r}")
    return answers[given.strip().lower()]


def _milliseconds(given: str) -> float:
    try:
        value = float(given)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"expected a number of milliseconds above 0, such as 500, got {given!r}")
    return value


def _risk(given: str) -> str:
    if given.strip().lower() not in RISKS:
        raise ValueError(f"expected {', '.join(RISKS)}, got {given!r}")
    return given.strip().lower()


QUESTIONS = (
    Question(
        name="real_time", flag="--real-time", answers="yes|no", parse=_yes_or_no,
        text="Real time: must it keep up with speech while it speaks?",
    ),
    Question(
        name="latency_ms", flag="--latency-ms", answers="500", parse=_milliseconds,
        text="Latency: how many milliseconds may the first sound take? (Is 500 acceptable?)",
    ),
    Question(
        name="speech_to_speech", flag="--speech-to-speech", answers="yes|no", parse=_yes_or_no,
        text="Speech to speech: must it hear speech and say speech itself?",
    ),
    Question(
        name="risk", flag="--risk", answers="low|medium|high", parse=_risk,
        text="Risk: how much may rest on what was not measured? "
        + " ".join(f"{risk}: {what}." for risk, what in WHAT_DECIDES.items()),
    ),
)  # fmt: skip


def add_flags(parser: argparse.ArgumentParser) -> None:
    """One option a question; the answers stay text until `needs_from` reads them."""
    for question in QUESTIONS:
        parser.add_argument(question.flag, metavar=question.answers, help=question.text)


def needs_from(given: argparse.Namespace, ask: Callable[[str], str] | None) -> Needs:
    """The answers given as flags; those that are missing are asked for. ask: None where nobody can be asked.

    Raises ValueError for an answer that cannot be read, and with the missing flags where nobody can be asked.
    """
    answers = {question.name: getattr(given, question.name) for question in QUESTIONS}
    missing = [question for question in QUESTIONS if answers[question.name] is None]
    if missing and ask is None:
        flags = " ".join(f"{question.flag} {question.answers}" for question in missing)
        raise ValueError(f"there is no terminal to ask at; give the missing answers as flags: {flags}")
    values = {question.name: _asked(question, answers[question.name], ask) for question in QUESTIONS}
    return Needs(**values)  # pyright: ignore[reportArgumentType]


def _asked(question: Question, answer: str | None, ask: Callable[[str], str] | None) -> object:
    if answer is not None:
        try:
            return question.parse(answer)
        except ValueError as error:
            raise ValueError(f"{question.flag}: {error}") from error
    assert ask is not None
    while True:
        try:
            typed = ask(f"{question.text} [{question.answers}] ")
        except EOFError as error:
            raise ValueError(f"the input ended before {question.flag} was answered") from error
        try:
            return question.parse(typed)
        except ValueError as error:
            print(error)
