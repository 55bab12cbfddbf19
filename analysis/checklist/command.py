"""The command that writes the page: `python -m analysis checklist RUN`."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from analysis.checklist.items import Item
    from analysis.checklist.runs import ModelRuns

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = "page.html"


def add_command(subparsers: Subparsers) -> None:
    """Adds `checklist`, which sets `command`: a function from the parsed arguments to the exit code."""
    parser = subparsers.add_parser("checklist", help="what is known of a trained model before it is launched")
    parser.add_argument("run", metavar="RUN", help="id of the arm's run that trained it")
    parser.add_argument("--store", help="where the runs are (default: MLFLOW_TRACKING_URI, else runs/mlflow.db)")
    parser.add_argument("--output", type=Path, help="the file to write (default: runs/checklist.html)")
    parser.set_defaults(command=_write)


def _write(given: argparse.Namespace) -> int:
    """Raises ValueError for a store that cannot be read and a run that is none of an arm."""
    # MLflow takes seconds to import, and only this needs it.
    from analysis.checklist.items import items_of
    from analysis.checklist.runs import runs_of
    from analysis.store import default_uri, open_store

    runs = runs_of(open_store(given.store or default_uri(ROOT)), given.run)
    items = items_of(runs)
    output: Path = given.output or ROOT / "runs" / "checklist.html"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(render(runs, items), encoding="utf-8")
    for item in items:
        print(f"{item.state:9} {item.question} {item.found}")
    print(f"wrote {output}: {summary(items)}; open it in a browser, no network needed")
    return 0


def summary(items: tuple[Item, ...]) -> str:
    """`3 met, 2 missing`, in the order that matters."""
    counted = Counter(item.state for item in items)
    return ", ".join(
        f"{counted[state]} {state}" for state in ("missing", "not met", "met", "measured") if counted[state]
    )


def render(runs: ModelRuns, items: tuple[Item, ...]) -> str:
    """The page's HTML: everything inside it, nothing loaded from elsewhere."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("analysis.checklist", "."), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template(TEMPLATE).render(runs=runs, items=items, summary=summary(items))
