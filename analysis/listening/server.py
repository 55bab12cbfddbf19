"""The rater's page and its requests; nothing that is sent tells which system spoke."""

from __future__ import annotations

import contextlib
import errno
import json
import socket
import sqlite3
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from analysis.listening.database import AnswerError, Database
from analysis.listening.preparing import CLIPS_FOLDER

PAGE_FOLDER = Path(__file__).parent / "page"
SCRIPTS = {"rate.js": "text/javascript", "rate.css": "text/css"}
LONGEST_REQUEST_BYTES = 4096
SECONDS_TO_ANSWER = 4.0
NOT_SAVED = (
    "Your answer is NOT saved: the computer that runs this test cannot write ({error}). Please tell who runs it."
)
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
SAME_FOR_EVERY_CLIP = "Thu, 01 Jan 1970 00:00:00 GMT"


def application(database: Database) -> Starlette:
    """The web application of one test."""
    templates = Environment(
        loader=PackageLoader("analysis.listening", "page"), autoescape=True, undefined=StrictUndefined
    )
    told = {
        "question": database.test.question, "is_simulated": database.test.is_simulated,
        "minutes": minutes_for_a_rater(database),
    }  # fmt: skip
    page = templates.get_template("rate.html").render(told)

    async def show(_: Request) -> Response:
        return HTMLResponse(page, headers=HEADERS)

    async def script(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in SCRIPTS:
            raise HTTPException(404)
        return Response((PAGE_FOLDER / name).read_text(encoding="utf-8"), media_type=SCRIPTS[name], headers=HEADERS)

    async def clip(request: Request) -> Response:
        token = request.path_params["token"]
        clip_id = await run_in_threadpool(database.clip_behind, token)
        # By default both tell a file's time and length, the same whenever it comes again: no repeat would be hidden.
        headers = {**HEADERS, "ETag": f'"{token}"', "Last-Modified": SAME_FOR_EVERY_CLIP}
        path = database.path.parent / CLIPS_FOLDER / f"{clip_id}.wav"
        return FileResponse(path, media_type="audio/wav", headers=headers)

    async def begin(request: Request) -> Response:
        given = await _body(request, "code")
        await run_in_threadpool(database.begin, str(given["code"]))
        return await _state(database, str(given["code"]))

    async def answer(request: Request) -> Response:
        given = await _body(request, "code", "position", "choice")
        if not isinstance(given["position"], int):
            raise AnswerError("The position of an answer is a whole number.")
        await run_in_threadpool(database.answer, str(given["code"]), given["position"], str(given["choice"]))
        return await _state(database, str(given["code"]))

    return Starlette(
        routes=[
            Route("/", show), Route("/static/{name}", script), Route("/clip/{token}.wav", clip),
            Route("/begin", begin, methods=["POST"]), Route("/answer", answer, methods=["POST"]),
        ],
        exception_handlers={AnswerError: _refused, sqlite3.Error: _not_saved},
    )  # fmt: skip


def minutes_for_a_rater(database: Database) -> int:
    """About how long the test takes: every clip once, and some seconds to answer."""
    seconds = {clip.clip_id: clip.seconds for clip in database.clips()}
    lengths = {
        kind: [seconds[each.first_clip] + seconds[each.second_clip] for each in database.pairs() if each.kind == kind]
        for kind in ("pair", "catch")
    }
    every = [length + SECONDS_TO_ANSWER for of_kind in lengths.values() for length in of_kind]
    return max(1, round(sum(every) / 60))


def listening_socket(host: str, port: int) -> socket.socket:
    """A bound socket for the server. Raises ValueError where the port is taken or the host is none of this machine."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        advice = (
            f"give another, LISTENING_PORT={port + 1} (or --port), or end what listens there"
            if error.errno in (errno.EADDRINUSE, errno.EACCES)
            else "give an address of this machine, HOST=0.0.0.0 for all of them"
        )
        raise ValueError(f"{host} port {port} cannot be used ({error.strerror}): {advice}") from error
    return bound


def addresses(host: str, port: int) -> list[str]:
    """Where raters find the page. Of 0.0.0.0 also the address by which other machines reach this one."""
    if host not in ("0.0.0.0", "::"):
        return [f"http://{f'[{host}]' if ':' in host else host}:{port}/"]
    found = ["127.0.0.1"]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing: only asks which own address leads out
            found.append(probe.getsockname()[0])
        except OSError:
            pass  # a machine without a network has no other address
    return [f"http://{each}:{port}/" for each in dict.fromkeys(found)]


def serve(database: Database, bound: socket.socket) -> None:
    """Until Ctrl-C or SIGTERM."""
    import uvicorn

    config = uvicorn.Config(
        application(database), log_level="warning", access_log=False, server_header=False, workers=1
    )
    with contextlib.suppress(KeyboardInterrupt):  # raised again by uvicorn after it has ended in order
        uvicorn.Server(config).run(sockets=[bound])


async def _state(database: Database, code: str) -> Response:
    """What comes next, in words that the page knows."""
    found = await run_in_threadpool(database.next_trial, code)
    if found is None:
        return JSONResponse({"is_finished": True}, headers=HEADERS)
    state = {
        "is_finished": False, "position": found.position, "trials": found.trials,
        "left": f"/clip/{found.left_token}.wav", "right": f"/clip/{found.right_token}.wav",
    }  # fmt: skip
    return JSONResponse(state, headers=HEADERS)


async def _body(request: Request, *names: str) -> dict[str, Any]:
    """The request's JSON object. Only this page may send one: other sites cannot send this type unasked."""
    if request.headers.get("content-type", "").partition(";")[0] != "application/json":
        raise AnswerError("Answers are sent as application/json.")
    content = await request.body()
    try:
        given = json.loads(content) if len(content) <= LONGEST_REQUEST_BYTES else None
    except ValueError:
        given = None
    if not isinstance(given, dict) or set(given) != set(names):
        raise AnswerError(f"This request takes an object of {', '.join(names)}.")
    return given


async def _refused(_: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, status_code=409, headers=HEADERS)


async def _not_saved(_: Request, error: Exception) -> Response:
    return JSONResponse({"error": NOT_SAVED.format(error=error)}, status_code=507, headers=HEADERS)
