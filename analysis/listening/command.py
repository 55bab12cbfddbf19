"""The commands `listening-test` (makes and serves one) and `listening-results`."""

from __future__ import annotations

import argparse
import importlib.util
import re
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.listening.preparing import DATABASE_FILE, FEWEST_RATERS, QUESTION

if TYPE_CHECKING:
    from analysis.listening.database import Database
    from analysis.store import Store

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

ROOT = Path(__file__).resolve().parents[2]
TESTS_FOLDER = "listening"
"""Beside `runs/`, which `make clean-runs` removes: what people answered cannot be run again."""
EXTRA = ("pyloudnorm", "choix", "krippendorff", "starlette", "uvicorn")
"""Packages of the extra `listening` (pyproject.toml)."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def add_commands(subparsers: Subparsers) -> None:
    """Adds both; each sets `command`, a function from the parsed arguments to the exit code."""
    test = subparsers.add_parser("listening-test", help="a blind listening test of runs or folders, on a local page")
    test.add_argument(
        "systems", nargs="*", metavar="RUN|FOLDER|LABEL=...", help="none: go on with the test called NAME"
    )
    test.add_argument("--host", default="127.0.0.1", help="0.0.0.0: for phones and others in the same network")
    test.add_argument("--port", type=int, default=8300, help="default: %(default)s")
    test.add_argument("--ttt", nargs="+", default=[], metavar="LABEL", help="what counts as TTT (default: ttt...)")
    test.add_argument("--pairs", type=int, default=60, help="at most so many (default: %(default)s; 40 to 60 advised)")
    test.add_argument("--raters", type=int, default=FEWEST_RATERS, help="planned, before anything is judged")
    test.add_argument(
        "--excerpts", nargs="+", default=[], metavar="START:SECONDS", help="parts of long sounds in folders"
    )
    test.add_argument("--question", default=QUESTION, help="default: %(default)s")
    test.add_argument("--seed", type=int, default=0, help="of pairs, order and sides (default: %(default)s)")
    test.add_argument("--simulated", action="store_true", help="programs will answer: no answer is ever a rating")
    test.add_argument("--prepare-only", action="store_true", help="make the test, serve nothing")
    test.set_defaults(command=_test)
    results = subparsers.add_parser("listening-results", help="what the raters of a listening test prefer")
    results.add_argument("--no-log", action="store_true", help="log nothing to MLflow")
    results.set_defaults(command=_results)
    for each in (test, results):
        each.add_argument(
            "--name", default="test", help=f"of the test, a folder in {TESTS_FOLDER}/ (default: %(default)s)"
        )
        each.add_argument("--store", help="where the runs are (default: MLFLOW_TRACKING_URI, else runs/mlflow.db)")
        each.add_argument("--root", type=Path, default=ROOT, help=argparse.SUPPRESS)


def _test(given: argparse.Namespace) -> int:
    """Raises ValueError for systems, sounds, a store, a port or a test that cannot be used."""
    folder = _folder(given)
    # Sound and statistics take seconds to import, and only these commands need them.
    from analysis.listening.database import Database
    from analysis.listening.preparing import TestOptions, check_clips, parse_excerpt, prepare
    from analysis.listening.server import addresses, listening_socket, minutes_for_a_rater, serve
    from analysis.listening.systems import systems_of

    # Taken first: what fails at once should not fail after minutes of level matching.
    bound = None if given.prepare_only else listening_socket(given.host, given.port)
    try:
        if given.systems:
            options = TestOptions(
                most_pairs=given.pairs, raters=given.raters, seed=given.seed, ttt=tuple(given.ttt),
                excerpts=tuple(parse_excerpt(each) for each in given.excerpts), question=given.question,
                is_simulated=given.simulated,
            )  # fmt: skip
            database = prepare(folder, systems_of(given.systems, lambda: _store(given)), options, tell=_say)
        else:
            database = Database(folder / DATABASE_FILE)
            if given.simulated and not database.test.is_simulated:
                raise ValueError(f"the test {given.name!r} is for people; --simulated is chosen when a test is made")
        check_clips(database)
        _describe(database, given.name, minutes_for_a_rater(database))
        if bound is not None:
            for address in addresses(given.host, bound.getsockname()[1]):
                _say(f"raters open  {address}")
            _say("Ctrl-C ends the server; answers are saved one by one, and the same command goes on.")
            serve(database, bound)
            _say("the server is ended")
    finally:
        if bound is not None:
            bound.close()
    return 0


def _results(given: argparse.Namespace) -> int:
    """Raises ValueError for a test that is not there, or results that cannot be written."""
    folder = _folder(given)
    from analysis.listening.database import Database
    from analysis.listening.results_page import lines, write_results
    from analysis.listening.verdict import results_of

    database = Database(folder / DATABASE_FILE)
    try:
        results = results_of(database)
        files = write_results(results, folder / "results")
    except (OSError, sqlite3.Error) as error:
        raise ValueError(f"the results of {folder} cannot be read or written: {error}; no answer is lost") from error
    for line in lines(results):
        _say(line)
    for number, each in enumerate(results.raters, 1):
        _say(f"rater {number} has the code {each.code}")
    _say(f"wrote {files[0]}")
    if results.refusals:
        _say("not logged: there is no verdict")
    elif given.no_log:
        _say("not logged: --no-log")
    else:
        from analysis.listening.logged import log_results

        run_id, is_new = log_results(_store(given), results, files, given.root)
        _say(f"{'logged as' if is_new else 'logged before, as'} run {run_id} of listening; make findings reads it")
    return 0


def _describe(database: Database, name: str, minutes: int) -> None:
    from analysis.listening.plan import power_lines

    test, pairs = database.test, database.pairs()
    count = sum(each.kind == "pair" for each in pairs)
    ttt = [each["label"] for each in test.systems if each["is_ttt"]]
    if test.is_simulated:
        _say("SIMULATED: programs answer this test; no answer is ever a rating")
    _say(
        f"test {name!r}: {', '.join(each['label'] for each in test.systems)}; "
        f"{count} pairs, {minutes} min or so for a rater"
    )
    _say(f"TTT: {', '.join(ttt) or 'none, so that there will be no verdict (labels that begin with ttt, or --ttt)'}")
    for line in power_lines(count, test.raters):
        _say(line)


def _folder(given: argparse.Namespace) -> Path:
    missing = [package for package in EXTRA if importlib.util.find_spec(package) is None]
    if missing:
        raise ValueError(f"listening tests need {', '.join(missing)}: make setup, or pip install -e '.[listening]'")
    if not NAME.fullmatch(given.name):
        raise ValueError(f"{given.name!r} is no name of a test: letters, digits, '.', '_' and '-'")
    return given.root / TESTS_FOLDER / given.name


def _store(given: argparse.Namespace) -> Store:
    from analysis.store import default_uri, open_store

    return open_store(given.store or default_uri(given.root))


def _say(line: str) -> None:
    print(line, flush=True)
