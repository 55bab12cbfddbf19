"""The command that writes the page: `python -m analysis report`."""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.evidence import read_evidence
from analysis.findings import Places
from analysis.ledger import load_ledger

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = "page.html"
COMMIT_CHARACTERS = 12


def add_command(subparsers: Subparsers) -> None:
    """Adds `report`, which sets `command`: a function from the parsed arguments to the exit code."""
    parser = subparsers.add_parser("report", help="write one page of findings, figures, sound and links to runs")
    parser.add_argument("--store", help="where the runs are (default: MLFLOW_TRACKING_URI, else runs/mlflow.db)")
    parser.add_argument("--from-evidence", action="store_true", help="findings alone, from evidence/*.csv, no store")
    parser.add_argument("--output", type=Path, help="the file to write (default: runs/report.html)")
    parser.add_argument("--root", type=Path, default=ROOT, help=argparse.SUPPRESS)
    parser.set_defaults(command=_write)


def _write(given: argparse.Namespace) -> int:
    """Raises ValueError for a store, a file of a run, claims or evidence that cannot be read."""
    # MLflow and matplotlib take seconds to import, and only this needs them.
    from analysis.report.content import collect
    from analysis.store import default_uri, open_store

    if given.store and given.from_evidence:
        raise ValueError("--store and --from-evidence exclude each other: leave out one")
    places = Places(root=given.root)
    store = None if given.from_evidence else open_store(given.store or default_uri(places.root))
    content = collect(load_ledger(places.claims), read_evidence(places.evidence), store, tell=print)
    page = render(content, commit_of(places.root))
    output: Path = given.output or places.root / "runs" / "report.html"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(page, encoding="utf-8")
    for missing in content.missing:
        print(f"not run yet: {missing}")
    print(f"wrote {output} ({len(page.encode()) / 1e6:.1f} MB); open it in a browser, no network needed")
    return 0


def render(content: object, commit: str) -> str:
    """The page's HTML: everything inside it, nothing loaded from elsewhere. content: a `report.content.Content`."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(loader=PackageLoader("analysis.report", "."), autoescape=True, undefined=StrictUndefined)
    return environment.get_template(TEMPLATE).render(content=content, commit=commit)


def commit_of(root: Path) -> str:
    """Short name of the commit at `root`; "unknown" outside a git checkout."""
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()[:COMMIT_CHARACTERS]
