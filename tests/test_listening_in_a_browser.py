"""A rater's session in headless Chromium, by keys and by touch, with the server killed between."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from dashboard_stores import CHROMIUM, Page, chromium_page
from listening_fixtures import write_sounds
from test_dashboard import free_port

from analysis.listening.database import Database

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="needs a chromium on PATH (apt-get install chromium)"),
    pytest.mark.skipif(importlib.util.find_spec("websocket") is None, reason="needs websocket-client"),
    pytest.mark.timeout(300),
]
WITHIN_S = 60
PICTURES = os.environ.get("LISTENING_PICTURES")
"""A folder for what the browser showed, for people to look at."""
KEYS = {"1": "Digit1", "2": "Digit2", "0": "Digit0", " ": "Space", "Enter": "Enter", "Tab": "Tab"}
KEYS |= {f"Arrow{side}": f"Arrow{side}" for side in ("Left", "Right")}
CODES = {"Enter": 13, "Tab": 9, " ": 32, "ArrowLeft": 37, "ArrowRight": 39, "0": 48, "1": 49, "2": 50}


@contextmanager
def served(root: Path, port: int, systems: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """The command as a user starts it; ended, if the test has not done it, with its context."""
    command = [sys.executable, "-m", "analysis", "listening-test", *systems, "--root", str(root), "--port", str(port)]
    server = subprocess.Popen([*command, *(["--simulated", "--pairs", "3"] if systems else [])])
    try:
        yield server
    finally:
        server.kill()
        server.wait(30)


def press(page: Page, key: str) -> None:
    text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
    about = {"key": key, "code": KEYS[key], "windowsVirtualKeyCode": CODES[key]}
    page.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **about)
    page.call("Input.dispatchKeyEvent", type="keyUp", **about)


def touch(page: Page, selector: str) -> None:
    box = page.value(
        f"(() => {{ const each = document.querySelector('{selector}'); each.scrollIntoView({{block: 'center'}});"
        " const box = each.getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2]; })()"
    )
    for kind, points in (("touchStart", [{"x": box[0], "y": box[1]}]), ("touchEnd", [])):
        page.call("Input.dispatchTouchEvent", type=kind, touchPoints=points)


def open_page(page: Page, address: str, width: int, is_phone: bool) -> None:
    page.call(
        "Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=is_phone
    )  # fmt: skip
    page.call("Emulation.setTouchEmulationEnabled", enabled=is_phone)
    scheme = "dark" if is_phone else "light"
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    page.open(address)
    page.wait_for("Boolean(document.getElementById('code'))", WITHIN_S, "the welcome")


def picture(page: Page, name: str) -> None:
    if PICTURES:
        page.picture(Path(PICTURES) / f"{name}.png")


def waits_for_both(page: Page, side: str) -> None:
    page.wait_for(f"document.getElementById('heard-{side}').textContent === 'heard'", WITHIN_S, f"{side} heard")


def is_at(page: Page, number: int) -> None:
    page.wait_for(
        f"document.getElementById('count').textContent.startsWith('Pair {number} ')", WITHIN_S, f"pair {number}"
    )


def wait_until_it_answers(page: Page, address: str, server: subprocess.Popen[bytes]) -> None:
    import time

    for _ in range(600):
        assert server.poll() is None, "the server ended"
        try:
            with urllib.request.urlopen(address, timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    raise AssertionError("the server does not answer")


def test_sessions_by_keys_and_by_touch_survive_a_killed_server(tmp_path: Path) -> None:
    port = free_port()
    address = f"http://127.0.0.1:{port}/"
    systems = write_sounds(tmp_path / "sounds", 3)
    file = tmp_path / "listening" / "test" / "listening.db"
    with chromium_page(tmp_path / "profile") as page:
        with served(tmp_path, port, systems) as server:
            wait_until_it_answers(page, address, server)
            # By keys alone: the code, the consent, then pair by pair.
            open_page(page, address, 1280, is_phone=False)
            assert "Simulated" in page.text()
            press(page, "Tab")
            page.call("Input.insertText", text="keys-1")
            press(page, "Tab")
            press(page, " ")
            picture(page, "desktop-welcome")
            press(page, "Enter")
            is_at(page, 1)
            press(page, "1")  # too early: nothing was heard
            assert page.value("document.getElementById('next').disabled")
            for number in (1, 2):
                is_at(page, number)
                press(page, " ")
                waits_for_both(page, "left")
                press(page, "ArrowRight")
                press(page, " ")
                waits_for_both(page, "right")
                press(page, "1")
                picture(page, "desktop-pair")
                if number == 1:
                    press(page, "Enter")
            os.kill(server.pid, signal.SIGKILL)
            server.wait(30)
            press(page, "Enter")
            page.wait_for("document.getElementById('problem').textContent !== ''", WITHIN_S, "that nothing answers")
            picture(page, "desktop-server-gone")
            assert len(Database(file).answers()) == 1
        with served(tmp_path, port, []) as server:
            is_at(page, 3)  # sent again by itself
            assert [each.choice for each in Database(file).answers()] == ["left", "left"]
            # Closed, and opened on a phone with the same code: it goes on at the third pair.
            open_page(page, address, 390, is_phone=True)
            picture(page, "phone-welcome")
            touch(page, "#code")
            page.call("Input.insertText", text="keys-1")
            touch(page, "#consent")
            touch(page, "button[type=submit]")
            for number in (3, 4, 5):
                is_at(page, number)
                for side in ("left", "right"):
                    touch(page, f"#play-{side}")
                    waits_for_both(page, side)
                touch(page, ".answer[data-choice=none]")
                assert page.value("document.documentElement.scrollWidth <= innerWidth"), "scrolls sideways"
                page.value("scrollTo(0, 0)")
                picture(page, "phone-pair")
                touch(page, "#next")
            page.wait_for("!document.getElementById('end').hidden", WITHIN_S, "the end")
            picture(page, "phone-end")
    database = Database(file)
    assert database.test.is_simulated
    assert [each.choice for each in database.answers()] == ["left", "left", "none", "none", "none"]
