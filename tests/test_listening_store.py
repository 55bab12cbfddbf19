"""The store of a listening test and its server: what is kept, what is refused, and what a browser can learn."""

from __future__ import annotations

import json
import sqlite3
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from listening_fixtures import Clock, answer_all, answer_one, fast_clock, simulated_test  # noqa: F401
from starlette.testclient import TestClient

from analysis.__main__ import main
from analysis.listening import database as store_module
from analysis.listening.database import AnswerError, Database
from analysis.listening.server import application, listening_socket


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return simulated_test(tmp_path, 4)


@pytest.fixture
def browser(database: Database) -> Iterator[TestClient]:
    with TestClient(application(database)) as client:
        yield client


def test_an_answer_takes_the_time_that_both_clips_take(database: Database) -> None:
    database.begin("amber-7")
    trial = database.next_trial("amber-7")
    assert trial is not None and trial.position == 0 and trial.trials == 6
    with pytest.raises(AnswerError, match="hear both clips"):
        database.answer("amber-7", 0, "left")
    for token in (trial.left_token, trial.right_token):
        database.clip_behind(token)
    with pytest.raises(AnswerError, match="hear both clips"):
        database.answer("amber-7", 0, "left")
    time.sleep(1.0)
    database.answer("amber-7", 0, "left")
    assert [each.choice for each in database.answers()] == ["left"]


def test_an_answer_is_kept_once_and_never_changed(database: Database, fast_clock: Clock) -> None:  # noqa: F811
    database.begin("amber-7")
    answer_one(database, "amber-7", "left")
    database.answer("amber-7", 0, "left")  # the reply was lost, so the page sends it again
    with pytest.raises(AnswerError, match="answered before"):
        database.answer("amber-7", 0, "right")
    with pytest.raises(AnswerError, match="answered before"):
        database.answer("amber-7", 3, "right")
    with pytest.raises(AnswerError, match="'both' is no answer"):
        database.answer("amber-7", 1, "both")
    with pytest.raises(AnswerError, match="does not know the code"):
        database.answer("birch-3", 1, "left")
    with sqlite3.connect(database.path) as connection:
        for change in ("UPDATE rating SET choice = 'none'", "UPDATE test SET value = 'false'", "DELETE FROM test"):
            with pytest.raises(sqlite3.IntegrityError, match="never changed"):
                connection.execute(change)
    assert [each.choice for each in Database(database.path).answers()] == ["left"]


def test_a_rater_goes_on_where_the_session_stopped(database: Database, fast_clock: Clock) -> None:  # noqa: F811
    answer_all(database, "birch-3", lambda rater, pair: "tie")
    database.begin("amber-7")
    answer_one(database, "amber-7", "none")
    before = database.next_trial("amber-7")
    again = Database(database.path)
    again.begin("amber-7")
    assert again.next_trial("amber-7") == before and before is not None and before.position == 1
    assert again.next_trial("birch-3") is None and list(again.raters()) == ["birch-3", "amber-7"]


def test_a_full_disk_loses_no_answer_and_says_that_one_is_not_saved(
    database: Database, browser: TestClient, fast_clock: Clock, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    database.begin("amber-7")
    answer_one(database, "amber-7", "left")
    connect = sqlite3.connect

    def full(*arguments: object, **options: object) -> sqlite3.Connection:
        connection = connect(*arguments, **options)
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")  # SQLite answers as on a full disk
        return connection

    with monkeypatch.context() as patched:
        patched.setattr(store_module.sqlite3, "connect", full)
        refused = [browser.post("/begin", json={"code": f"rater-{number}"}) for number in range(9)][-1]
    assert refused.status_code == 507
    assert "NOT saved" in refused.json()["error"] and "full" in refused.json()["error"]
    assert [each.choice for each in database.answers()] == ["left"]
    assert browser.post("/begin", json={"code": "rater-8"}).status_code == 200


def test_nothing_that_a_browser_gets_tells_systems_or_kinds_of_trials_apart(
    database: Database, browser: TestClient, fast_clock: Clock  # noqa: F811
) -> None:  # fmt: skip
    told = [browser.get("/").text, browser.get("/static/rate.js").text, browser.get("/static/rate.css").text]
    heads: list[dict[str, str]] = []
    addresses: list[str] = []
    reply = browser.post("/begin", json={"code": "amber-7"})
    while True:
        told.append(reply.text)
        state = reply.json()
        if state["is_finished"]:
            break
        assert set(state) == {"is_finished", "position", "trials", "left", "right"}
        for side in ("left", "right"):
            clip = browser.get(state[side])
            head = {name: value for name, value in clip.headers.items() if name != "content-length"}
            assert head.pop("etag") == f'"{Path(state[side]).stem}"'
            heads.append(head)
            addresses.append(state[side])
            assert len(clip.content) == 44 + 2 * round((len(clip.content) - 44) / 2)
            assert clip.content[36:40] == b"data"  # nothing between the format and the samples
        reply = browser.post(
            "/answer", json={"code": "amber-7", "position": state["position"], "choice": "left"}
        )  # fmt: skip
    assert all(head == heads[0] for head in heads)
    assert len(set(addresses)) == len(addresses) == 12  # a clip that comes again has another address
    secrets = ["ttt", "window", "item-0", "degraded", "catch", "repeat", *(clip.clip_id for clip in database.clips())]
    everything = " ".join([*told[:1], *told[3:], *addresses, json.dumps(heads)])
    assert [secret for secret in secrets if secret in everything] == []
    assert not any(name in told[1] for name in ("ttt", "window", "degraded"))


def test_clips_come_in_parts_where_a_phone_asks_for_parts(database: Database, browser: TestClient) -> None:
    state = browser.post("/begin", json={"code": "amber-7"}).json()
    whole = browser.get(state["left"])
    part = browser.get(state["left"], headers={"Range": "bytes=0-1"})
    rest = browser.get(state["left"], headers={"Range": "bytes=2-", "If-Range": whole.headers["etag"]})
    assert whole.status_code == 200 and whole.headers["accept-ranges"] == "bytes"
    assert (part.status_code, part.content) == (206, whole.content[:2])
    assert part.headers["content-range"] == f"bytes 0-1/{len(whole.content)}"
    assert part.content + rest.content == whole.content


def test_requests_that_are_none_of_the_pages_are_refused(browser: TestClient) -> None:
    assert "not use your name" in browser.post("/begin", json={"code": "Anna Smith"}).json()["error"]
    assert (
        browser.post("/begin", content='{"code": "amber"}', headers={"Content-Type": "text/plain"}).status_code == 409
    )
    assert browser.post("/begin", json=["amber"]).status_code == 409
    assert browser.get(f"/clip/{'0' * 32}.wav").status_code == 409
    assert browser.get("/static/server.py").status_code == 404
    assert "default-src 'self'" in browser.get("/").headers["content-security-policy"]


def test_a_port_in_use_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    simulated_test(tmp_path, 2)
    with listening_socket("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["listening-test", "--root", str(tmp_path), "--port", str(port)]) == 2
    assert f"LISTENING_PORT={port + 1}" in capsys.readouterr().err


def test_files_that_are_no_listening_test_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=r"there is no listening test at .*make listening-test RUNS"):
        Database(tmp_path / "none.db")
    (tmp_path / "text.db").write_text("no database" * 99)
    with pytest.raises(ValueError, match=r"text\.db is no listening test that can be read"):
        Database(tmp_path / "text.db")
    with sqlite3.connect(tmp_path / "birds.db") as other:
        other.execute("CREATE TABLE birds (name TEXT)")
    with pytest.raises(ValueError, match=r"birds\.db is no listening test of this version"):
        Database(tmp_path / "birds.db")
    assert main(["listening-results", "--root", str(tmp_path), "--name", "../x"]) == 2
    assert "is no name of a test" in capsys.readouterr().err


def test_a_missing_package_is_named_with_what_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "choix", None)
    assert main(["listening-results", "--root", str(tmp_path)]) == 2
    assert "need choix: make setup, or pip install -e '.[listening]'" in capsys.readouterr().err
