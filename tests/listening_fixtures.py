"""Small listening tests for the tests: tones, stores marked simulated, a clock that runs fast."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy
import pytest
import soundfile

from analysis.listening import database as store_module
from analysis.listening.database import Database, StoredPair
from analysis.listening.preparing import TestOptions, prepare
from analysis.listening.systems import System, systems_of

TONE_S = 0.45
Opinion = Callable[[str, StoredPair], str]
"""(rater, pair) -> first, tie or second."""


def tone(hertz: float, seconds: float = TONE_S, rate_hz: int = 8000, loud: float = 0.2) -> numpy.ndarray:
    times = numpy.arange(round(seconds * rate_hz)) / rate_hz
    return loud * numpy.sin(2 * numpy.pi * hertz * times)


def write_sounds(root: Path, items: int, labels: tuple[str, ...] = ("ttt", "window"), rate_hz: int = 8000) -> list[str]:
    """A folder of tones for each system, each louder than the one before. Gives the arguments that name them."""
    for number, label in enumerate(labels):
        (root / label).mkdir(parents=True, exist_ok=True)
        for item in range(items):
            sound = tone(200 + 40 * item + 7 * number, TONE_S + 0.05 * number, rate_hz, 0.05 + 0.2 * number)
            soundfile.write(root / label / f"item-{item:02d}.wav", sound, rate_hz)
    return [f"{label}={root / label}" for label in labels]


def folder_systems(arguments: list[str]) -> list[System]:
    def no_store() -> None:
        raise AssertionError("folders need no store of runs")

    return systems_of(arguments, no_store)


def simulated_test(root: Path, items: int, labels: tuple[str, ...] = ("ttt", "window"), **options: object) -> Database:
    """A test that is marked simulated: what programs answer here can never be a rating."""
    systems = folder_systems(write_sounds(root / "sounds", items, labels))
    return prepare(root / "listening" / "test", systems, TestOptions(is_simulated=True, **options))


class Clock:
    """Stands in for the time that stores read; every look is a step later."""

    def __init__(self, step_s: int = 1) -> None:
        self._ticks = itertools.count(1_700_000_000, step_s)

    def time(self) -> float:
        return float(next(self._ticks))


@pytest.fixture
def fast_clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    monkeypatch.setattr(store_module, "time", clock)
    monkeypatch.setattr(store_module, "SYNCHRONOUS", "OFF")  # waiting for the disk is most of an answer's time
    yield clock


def answer_one(database: Database, rater: str, choice: str) -> None:
    """The rater's next trial, both clips fetched."""
    trial = database.next_trial(rater)
    assert trial is not None
    for token in (trial.left_token, trial.right_token):
        database.clip_behind(token)
    database.answer(rater, trial.position, choice)


def answer_all(database: Database, rater: str, opinion: Opinion, catches: str = "first") -> None:
    """Every trial of a rater, by opinion on the pair; `catches` answers catch trials (first is the original)."""
    database.begin(rater)
    pairs: Mapping[tuple[str, int], StoredPair] = {(each.kind, each.number): each for each in database.pairs()}
    rows = database._rows(f"SELECT * FROM trial WHERE rater = '{rater}' ORDER BY position")
    for row in rows:
        is_catch = row["kind"] == "catch"
        liked = catches if is_catch else opinion(rater, pairs["pair", row["pair"]])
        sides = {"first": "right" if row["is_swapped"] else "left", "second": "left" if row["is_swapped"] else "right"}
        answer_one(database, rater, sides.get(liked, "none"))
