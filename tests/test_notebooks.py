"""Every notebook runs on the store that smoke runs have just written, shows what they logged, and is clean."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient
from recipe_commands import ROOT, environment, run_command

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# What the other recipes' pictures are made of is tested where their smoke runs are: these two are the cheapest.
RECIPES_RUN = ("memory", "gibberish")
CELL_SECONDS = 120
by_name = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KernelManager]:
    """One kernel for all notebooks (each starts with an empty namespace), beside a store of two smoke runs."""
    folder = tmp_path_factory.mktemp("smoke_runs")
    for recipe in RECIPES_RUN:
        ran = run_command(folder, recipe)
        assert ran.exit_code == 0, ran.errors
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(env=environment() | {"MLFLOW_TRACKING_URI": ran.uri, "PYTHONDONTWRITEBYTECODE": "1"})
    yield manager
    manager.shutdown_kernel(now=True)


def executed(path: Path, kernel: KernelManager) -> list[Any]:
    """The notebook's code cells with their outputs; an error in any of them fails the test with its traceback."""
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.insert(0, nbformat.v4.new_code_cell("%reset -f"))
    NotebookClient(notebook, km=kernel, timeout=CELL_SECONDS).execute()
    return [cell for cell in notebook.cells[1:] if cell.cell_type == "code"]


def shown(cell: Any) -> str:
    """What a cell shows, as HTML."""
    return "".join("".join(output.get("data", {}).get("text/html", "")) for output in cell.outputs)


@by_name
def test_a_notebook_runs_and_shows_pictures_of_what_was_run_and_says_what_was_not(
    path: Path, kernel: KernelManager
) -> None:
    cells = executed(path, kernel)
    assert not [output for cell in cells for output in cell.outputs if output.output_type == "stream"]
    for cell in cells:
        asked = re.search(r"gallery\.(?:show|printed)\(\s*\"([^\"]+)", cell.source)
        if asked is None:
            continue
        html, recipe = shown(cell), asked[1]
        if recipe in RECIPES_RUN:
            assert f"{recipe}, scale smoke, seeds 0" in html, cell.source
            assert "data:image/png;base64," in html or "<pre" in html
        else:
            assert f"no finished run of {recipe} in " in html, cell.source
            assert f"make exp-{recipe} SCALE=smoke" in html


@by_name
def test_a_notebook_is_committed_without_outputs_and_calls_analysis_alone(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None
            for line in cell.source.splitlines():
                if line.lstrip().startswith(("import ", "from ")):
                    assert line.startswith("from analysis."), line
    assert not [key for key in notebook.metadata if key not in ("kernelspec", "language_info")]


@by_name
def test_a_notebook_is_thin_and_tells_a_story(path: Path) -> None:
    cells = nbformat.read(path, as_version=4).cells
    assert cells[0].cell_type == "markdown" and cells[0].source.startswith("# ")
    assert all(len(cell.source.splitlines()) <= 6 for cell in cells if cell.cell_type == "code")
    assert sum(cell.cell_type == "markdown" for cell in cells) >= 5
    assert len(cells) <= 25
