"""The command that saves the prepared views, starts MLflow's server and prints the links that open them."""

from __future__ import annotations

import argparse
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.dashboard.page_state import MLFLOW_SEEN, link
from analysis.dashboard.saving import LeftOut, SavedView, save_views
from analysis.dashboard.server import ADDRESS, check_port, mlflow_server, version_of
from analysis.dashboard.views import VIEWS
from analysis.store import default_uri, open_store

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

ROOT = Path(__file__).resolve().parents[2]


def add_command(subparsers: Subparsers) -> None:
    """Adds `dashboard`, which sets `command`: a function from the parsed arguments to the exit code."""
    parser = subparsers.add_parser("dashboard", help="MLflow with prepared comparison views")
    parser.add_argument("--store", help="default: MLFLOW_TRACKING_URI, else runs/mlflow.db")
    parser.add_argument("--port", type=int, default=5000, help="of the server that is started (default: %(default)s)")
    parser.add_argument(
        "--no-server", action="store_true", help="save the views and print links to a server that runs on the port"
    )
    parser.set_defaults(command=_show)


def _show(given: argparse.Namespace) -> int:
    """Raises ValueError where there is no store, it is of another schema, or the server cannot be started."""
    uri = given.store or default_uri(ROOT)
    is_remote = uri.startswith(("http://", "https://"))
    store = open_store(uri)
    store.require_runs()
    if not is_remote and not given.no_server:
        check_port(given.port)
    saved = save_views(store, VIEWS)
    if is_remote or given.no_server:
        address = uri if is_remote else f"http://{ADDRESS}:{given.port}"
        _print(address, saved)
        if is_remote:
            _say_if_other_version(address)
        return 0
    print(f"starting MLflow's server on {uri} ...", flush=True)
    _serve(uri, given.port, saved)
    return 0


def _serve(uri: str, port: int, saved: Sequence[SavedView | LeftOut]) -> None:
    """Until Ctrl-C or SIGTERM, both of which end the server too, whenever they come."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.default_int_handler)
    try:
        with mlflow_server(uri, ROOT / "runs" / "mlartifacts", port) as address:
            _print(address, saved)
            print("Ctrl-C ends the server.", flush=True)
            threading.Event().wait()
    except KeyboardInterrupt:
        print("MLflow's server is ended")


def _print(address: str, saved: Sequence[SavedView | LeftOut]) -> None:
    for each in saved:
        if isinstance(each, SavedView):
            print(f"{each.view.title} (scale {each.scale}; {each.outcome})")
            print(f"  {link(address, each.view, each.experiment_ids)}")
    for each in saved:
        if isinstance(each, LeftOut):
            print(f"not shown: {each.view.title}: {each.reason}")
    print(flush=True, end="")


def _say_if_other_version(address: str) -> None:
    version = version_of(address)
    if version and not version.startswith(f"{MLFLOW_SEEN}."):
        print(
            f"{address} runs MLflow {version}, and the views are written as MLflow {MLFLOW_SEEN} reads them, which is "
            "documented nowhere: charts may be missing"
        )
