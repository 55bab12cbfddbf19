"""One listening test in one SQLite file; every answer is on disk once it is given."""

from __future__ import annotations

import json
import re
import secrets
import sqlite3
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from analysis.listening.plan import ItemPair, Kind, Trial, session

APPLICATION_ID = 0x4C54_5354
SCHEMA_VERSION = 1
BUSY_SECONDS = 10.0
SYNCHRONOUS = "FULL"
"""Each answer is on the disk itself before the rater is told so: a power cut costs none."""
HEARD_SHARE = 0.95
"""Of the two clips' seconds, that must have gone by before an answer is taken: clocks of browsers differ a little."""
CODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{2,29}")

Choice = Literal["left", "right", "none"]

TABLES = """
CREATE TABLE test (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE clip (
    clip_id TEXT PRIMARY KEY, system TEXT NOT NULL, item TEXT NOT NULL, seconds REAL NOT NULL, digest TEXT NOT NULL
) STRICT;
CREATE TABLE pair (
    kind TEXT NOT NULL, number INTEGER NOT NULL, item TEXT NOT NULL, first_system TEXT NOT NULL,
    second_system TEXT NOT NULL, first_clip TEXT NOT NULL REFERENCES clip, second_clip TEXT NOT NULL REFERENCES clip,
    PRIMARY KEY (kind, number)
) STRICT;
CREATE TABLE rater (code TEXT PRIMARY KEY, began_at REAL NOT NULL) STRICT;
CREATE TABLE trial (
    rater TEXT NOT NULL REFERENCES rater, position INTEGER NOT NULL, kind TEXT NOT NULL, pair INTEGER NOT NULL,
    is_swapped INTEGER NOT NULL, left_clip TEXT NOT NULL REFERENCES clip, right_clip TEXT NOT NULL REFERENCES clip,
    left_token TEXT NOT NULL UNIQUE, right_token TEXT NOT NULL UNIQUE, left_asked_at REAL, right_asked_at REAL,
    PRIMARY KEY (rater, position)
) STRICT;
CREATE TABLE rating (
    rater TEXT NOT NULL, position INTEGER NOT NULL, choice TEXT NOT NULL CHECK (choice IN ('left', 'right', 'none')),
    seconds REAL NOT NULL, answered_at REAL NOT NULL, PRIMARY KEY (rater, position),
    FOREIGN KEY (rater, position) REFERENCES trial
) STRICT;
CREATE TRIGGER rating_stays BEFORE UPDATE ON rating BEGIN SELECT RAISE(ABORT, 'an answer is never changed'); END;
CREATE TRIGGER mark_stays BEFORE UPDATE ON test BEGIN SELECT RAISE(ABORT, 'a test is never changed'); END;
CREATE TRIGGER mark_is_kept BEFORE DELETE ON test BEGIN SELECT RAISE(ABORT, 'a test is never changed'); END;
"""


class AnswerError(ValueError):
    """An answer, a code or a clip that cannot be taken or given; the message is for the rater."""


@dataclass(frozen=True, kw_only=True)
class Test:
    """What a test is. digest: of the sounds and all that the plan was drawn from. raters: how many must finish before
    anything is judged. systems: {label, is_ttt, origins} of each. is_simulated: programs answer, not people. places:
    {item: share of the stream that lies before it} of excerpts of long streams; notes: what was left out of those."""

    __test__ = False  # pytest would collect it

    digest: str
    seed: int
    raters: int
    question: str
    is_simulated: bool
    systems: tuple[dict[str, Any], ...]
    places: dict[str, float] = field(default_factory=dict[str, float])
    notes: list[str] = field(default_factory=list[str])


@dataclass(frozen=True, kw_only=True)
class StoredClip:
    """seconds: as long as it plays. digest: sha256 of the file."""

    clip_id: str
    system: str
    item: str
    seconds: float
    digest: str


@dataclass(frozen=True, kw_only=True)
class StoredPair:
    """Two clips to compare. A catch trial's second clip is a degraded copy of its first."""

    kind: Literal["pair", "catch"]
    number: int
    pair: ItemPair
    first_clip: str
    second_clip: str


@dataclass(frozen=True, kw_only=True)
class NextTrial:
    """What a rater hears next, and nothing that tells systems apart. position: from 0, of `trials`."""

    position: int
    trials: int
    left_token: str
    right_token: str


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One answered trial, with what only the store knows. choice: left, right or none."""

    rater: str
    position: int
    kind: Kind
    pair: int
    is_swapped: bool
    choice: Choice
    seconds: float


def create(path: Path, test: Test, clips: Sequence[StoredClip], pairs: Sequence[StoredPair]) -> None:
    """Writes a new test, or nothing. Raises ValueError where the file is there already or cannot be written."""
    if path.exists():
        raise ValueError(f"{path} holds a test already; give another NAME, or leave out RUNS to go on with it")
    building = path.with_name(f"{path.name}.new")
    try:
        building.unlink(missing_ok=True)
        with _transaction(building) as connection:
            for statement in (f"PRAGMA application_id = {APPLICATION_ID}", f"PRAGMA user_version = {SCHEMA_VERSION}"):
                connection.execute(statement)
            for statement in _statements(TABLES):
                connection.execute(statement)
            rows = [(name, json.dumps(value)) for name, value in asdict(test).items()]
            connection.executemany("INSERT INTO test VALUES (?, ?)", rows)
            connection.executemany(
                "INSERT INTO clip VALUES (?, ?, ?, ?, ?)",
                [(each.clip_id, each.system, each.item, each.seconds, each.digest) for each in clips],
            )
            connection.executemany(
                "INSERT INTO pair VALUES (?, ?, ?, ?, ?, ?, ?)",
                [
                    (each.kind, each.number, each.pair.item, each.pair.first, each.pair.second, each.first_clip,
                     each.second_clip)
                    for each in pairs
                ],
            )  # fmt: skip
        building.replace(path)
    except (sqlite3.Error, OSError) as error:
        raise ValueError(
            f"the test cannot be written to {path}: {error}; free some disk, or name another place"
        ) from error


class Database:
    """The store of one test. Every call is a transaction of its own, on disk when it returns."""

    def __init__(self, path: Path) -> None:
        """Raises ValueError where the file is missing, damaged, or no listening test of this version."""
        self.path = path
        if not path.is_file():
            raise ValueError(f"there is no listening test at {path}; make one: make listening-test RUNS=... NAME=...")
        try:
            with _transaction(path) as connection:
                marks = [
                    connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
                ]
                if marks != [APPLICATION_ID, SCHEMA_VERSION]:
                    raise ValueError(
                        f"{path} is no listening test of this version ({marks[0]:#x}, {marks[1]}); name another"
                    )
                rows: list[tuple[str, str]] = connection.execute("SELECT name, value FROM test").fetchall()
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{path} is no listening test that can be read: {error}") from error
        found: dict[str, Any] = {name: json.loads(value) for name, value in rows}
        found["systems"] = tuple(found["systems"])
        self.test = Test(**found)

    def clips(self) -> list[StoredClip]:
        return [StoredClip(**row) for row in self._rows("SELECT clip_id, system, item, seconds, digest FROM clip")]

    def pairs(self) -> list[StoredPair]:
        return [
            StoredPair(
                kind=row["kind"], number=row["number"], first_clip=row["first_clip"], second_clip=row["second_clip"],
                pair=ItemPair(item=row["item"], first=row["first_system"], second=row["second_system"]),
            )
            for row in self._rows("SELECT * FROM pair ORDER BY kind, number")
        ]  # fmt: skip

    def raters(self) -> dict[str, int]:
        """{code: how many trials it has}, in the order in which they began."""
        rows = self._rows(
            "SELECT code, count(trial.position) AS trials FROM rater LEFT JOIN trial ON trial.rater = code "
            "GROUP BY code ORDER BY began_at, code"
        )
        return {row["code"]: row["trials"] for row in rows}

    def answers(self) -> list[Answer]:
        """By rater and position."""
        rows = self._rows(
            "SELECT trial.rater, trial.position, kind, pair, is_swapped, choice, rating.seconds "
            "FROM rating JOIN trial USING (rater, position) ORDER BY trial.rater, trial.position"
        )
        for row in rows:
            row["is_swapped"] = bool(row["is_swapped"])
        return [Answer(**row) for row in rows]

    def begin(self, code: str) -> None:
        """A rater with this code, and its trials; one that is known goes on where it stopped.

        Raises:
            AnswerError: the code is none.
        """
        if not CODE.fullmatch(code):
            raise AnswerError("A code has 3 to 30 letters, digits, - or _, and no spaces. Please do not use your name.")
        pairs = {(each.kind, each.number): each for each in self.pairs()}
        counts = {kind: sum(each == kind for each, _ in pairs) for kind in ("pair", "catch")}
        with _transaction(self.path) as connection:
            if connection.execute("SELECT 1 FROM rater WHERE code = ?", (code,)).fetchone():
                return
            connection.execute("INSERT INTO rater VALUES (?, ?)", (code, time.time()))
            trials = session(counts["pair"], counts["catch"], self.test.seed, code)
            connection.executemany(
                "INSERT INTO trial VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, NULL, NULL)",
                [
                    (code, position, trial.kind, trial.pair, int(trial.is_swapped), *_clips_of(trial, pairs),
                     secrets.token_hex(16), secrets.token_hex(16))
                    for position, trial in enumerate(trials)
                ],
            )  # fmt: skip

    def next_trial(self, code: str) -> NextTrial | None:
        """The rater's first trial without an answer; None at the end. Raises AnswerError for an unknown code."""
        with _transaction(self.path) as connection:
            row = self._open_trial(connection, code)
            trials = connection.execute("SELECT count(*) FROM trial WHERE rater = ?", (code,)).fetchone()[0]
        if row is None:
            return None
        return NextTrial(
            position=row["position"], trials=trials, left_token=row["left_token"], right_token=row["right_token"]
        )

    def clip_behind(self, token: str) -> str:
        """The clip that a token stands for, and a note that it was asked for. Raises AnswerError for none."""
        with _transaction(self.path) as connection:
            for side in ("left", "right"):
                row = connection.execute(
                    f"SELECT {side}_clip AS clip, rater, position FROM trial WHERE {side}_token = ?", (token,)
                ).fetchone()
                if row is not None:
                    connection.execute(
                        f"UPDATE trial SET {side}_asked_at = coalesce({side}_asked_at, ?) "
                        "WHERE rater = ? AND position = ?",
                        (time.time(), row["rater"], row["position"]),
                    )
                    return str(row["clip"])
        raise AnswerError("There is no such clip.")

    def answer(self, code: str, position: int, choice: str) -> None:
        """Keeps an answer. The same answer again, sent because the first reply was lost, changes nothing.

        Raises:
            AnswerError: no such choice; another trial is next; or both clips cannot have been heard yet.
        """
        if choice not in ("left", "right", "none"):
            raise AnswerError(f"{choice!r} is no answer: it is left, right or none.")
        with _transaction(self.path) as connection:
            known = connection.execute(
                "SELECT choice FROM rating WHERE rater = ? AND position = ?", (code, position)
            ).fetchone()
            if known is not None and known["choice"] == choice:
                return
            row = self._open_trial(connection, code)
            if known is not None or row is None or row["position"] != position:
                raise AnswerError(
                    "This pair was answered before, in another window perhaps. Please load the page again."
                )
            now = time.time()
            asked = (row["left_asked_at"], row["right_asked_at"])
            length = sum(
                connection.execute("SELECT seconds FROM clip WHERE clip_id = ?", (row[f"{side}_clip"],)).fetchone()[0]
                for side in ("left", "right")
            )
            if None in asked or now - min(asked) < HEARD_SHARE * length:
                raise AnswerError("Please hear both clips to their ends first.")
            connection.execute(
                "INSERT INTO rating VALUES (?, ?, ?, ?, ?)", (code, position, choice, now - min(asked), now)
            )

    def _open_trial(self, connection: sqlite3.Connection, code: str) -> sqlite3.Row | None:
        if connection.execute("SELECT 1 FROM rater WHERE code = ?", (code,)).fetchone() is None:
            raise AnswerError("This test does not know the code. Please load the page again and begin with it.")
        return connection.execute(
            "SELECT trial.* FROM trial LEFT JOIN rating USING (rater, position) "
            "WHERE trial.rater = ? AND rating.choice IS NULL ORDER BY trial.position LIMIT 1",
            (code,),
        ).fetchone()

    def _rows(self, query: str) -> list[dict[str, Any]]:
        with _transaction(self.path) as connection:
            return [dict(row) for row in connection.execute(query)]


def _clips_of(trial: Trial, pairs: dict[tuple[str, int], StoredPair]) -> tuple[str, str]:
    """Left and right."""
    found = pairs["catch" if trial.kind == "catch" else "pair", trial.pair]
    clips = (found.first_clip, found.second_clip)
    return (clips[1], clips[0]) if trial.is_swapped else clips


@contextmanager
def _transaction(path: Path) -> Generator[sqlite3.Connection]:
    """Committed and on disk (WAL, synchronous FULL) at its end, or, where anything is raised, as if it never began."""
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
    try:
        connection.row_factory = sqlite3.Row
        for setting in ("journal_mode = WAL", f"synchronous = {SYNCHRONOUS}", "foreign_keys = ON"):
            connection.execute(f"PRAGMA {setting}").close()
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
        except BaseException:
            connection.rollback()
            raise
        connection.commit()
    finally:
        connection.close()


def _statements(script: str) -> list[str]:
    """Single statements: `executescript` would commit between them."""
    found, begun = [], ""
    for line in script.strip().splitlines():
        begun += line + "\n"
        if sqlite3.complete_statement(begun):
            found.append(begun)
            begun = ""
    return found
