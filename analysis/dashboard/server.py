"""MLflow's own server as a child process, on a local store: started, waited for, and ended with its workers."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

ADDRESS = "127.0.0.1"
STARTS_WITHIN_SECONDS = 120.0
ENDS_WITHIN_SECONDS = 10.0
ASK_EVERY_SECONDS = 0.3
LINES_OF_LOG = 15


class ServerError(ValueError):
    """The server could not be started; the message says why and what to do."""


@contextmanager
def mlflow_server(store_uri: str, artifacts: Path, port: int) -> Generator[str]:
    """The address of a server that answers, for as long as the context is open.

    Raises:
        ServerError: the port is taken, or the server ended or did not answer in time; with the end of its log.
    """
    check_port(port)
    with tempfile.TemporaryFile() as log:
        command = [
            sys.executable, "-m", "mlflow", "server", "--host", ADDRESS, "--port", str(port), "--workers", "1",
            "--backend-store-uri", store_uri, "--artifacts-destination", str(artifacts),
        ]  # fmt: skip
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        # A session of its own, so that ending it ends the workers it started as well.
        server = subprocess.Popen(
            command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            address = f"http://{ADDRESS}:{port}"
            problem = _wait(server, address)
            if problem:
                log.seek(0)
                lines = log.read().decode(errors="replace").splitlines()[-LINES_OF_LOG:]
                raise ServerError("\n".join([f"MLflow's server {problem}; the end of its log:", *lines]))
            yield address
        finally:
            _end(server)


def check_port(port: int) -> None:
    """Raises ServerError where something listens on the port already."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((ADDRESS, port))
        except OSError as error:
            raise ServerError(
                f"port {port} cannot be used ({error.strerror}): give another, PORT={port + 1} (or --port); if an "
                "MLflow server of this store listens there already, --no-server prints its links"
            ) from error


def _wait(server: subprocess.Popen[bytes], address: str) -> str:
    """Empty once the server answers, else what went wrong."""
    until = time.monotonic() + STARTS_WITHIN_SECONDS
    while time.monotonic() < until:
        if server.poll() is not None:
            return f"ended with code {server.returncode} before it answered"
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=2):
                return ""
        except (urllib.error.URLError, TimeoutError, OSError):
            time.sleep(ASK_EVERY_SECONDS)
    return f"did not answer within {STARTS_WITHIN_SECONDS:.0f} s"


def _end(server: subprocess.Popen[bytes]) -> None:
    """Asks the server and its workers to end, and ends them if they do not."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(server.pid, sign)
        except ProcessLookupError:
            break
        try:
            server.wait(ENDS_WITHIN_SECONDS)
            break
        except subprocess.TimeoutExpired:
            continue
    server.wait()


def version_of(address: str) -> str:
    """The MLflow version that a server tells; empty where it does not."""
    try:
        with urllib.request.urlopen(f"{address.rstrip('/')}/version", timeout=5) as answer:
            return answer.read().decode(errors="replace").strip()
    except (urllib.error.URLError, TimeoutError, OSError):
        return ""
