"""Imports point one way: ttt_core <- backbones <- experiments; analysis stands apart; notebooks call analysis only."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("ttt_core", "backbones", "experiments", "analysis")
MAY_IMPORT_OF_OURS = {
    "ttt_core": {"ttt_core"},
    "backbones": {"backbones", "ttt_core"},
    "experiments": {"experiments", "backbones", "ttt_core"},
    "analysis": {"analysis"},
    "notebooks": {"analysis"},
}
TRAINING_STACK = {"torch", "lightning", "pytorch_lightning", "transformers", "torchmetrics", "moshi"}
MUST_NOT_IMPORT = {
    "ttt_core": set[str](),
    "backbones": {"lightning", "pytorch_lightning", "mlflow"},
    "experiments": set[str](),
    "analysis": TRAINING_STACK,
    "notebooks": TRAINING_STACK,
}
# What ttt_core may use beyond torch and the standard library, in one file and only when a function is called.
TTT_CORE_ON_CALL = {"ttt_core/monitor.py": {"matplotlib"}, "ttt_core/state_file.py": {"safetensors"}}

LONGEST_FILE_LINES = 400
LONG_FILE_LINES = 350


@dataclass(frozen=True, kw_only=True)
class Import:
    """One imported module by its full name; `on_call` when it happens inside a function or for type checkers only."""

    module: str
    line: int
    on_call: bool

    @property
    def root(self) -> str:
        return self.module.partition(".")[0]


def imports_in(source: str, module: str, is_package: bool = False) -> list[Import]:
    """Every import in `source`, the text of `module`: statements at any depth and import_module with a literal."""
    found: list[Import] = []

    def visit(node: ast.AST, on_call: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(module=alias.name, line=node.lineno, on_call=on_call) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, module, is_package)
            # `from experiments.recipes import x` may name a module as well as a value, so both readings are kept.
            found.extend(
                Import(module=f"{base}.{alias.name}", line=node.lineno, on_call=on_call) for alias in node.names
            )
        elif isinstance(node, ast.Call) and _is_import_call(node):
            argument = node.args[0]
            assert isinstance(argument, ast.Constant)
            found.append(Import(module=str(argument.value), line=node.lineno, on_call=on_call))
        inside = on_call or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            inside = True
        for child in ast.iter_child_nodes(node):
            visit(child, inside)

    visit(ast.parse(source), False)
    return found


def _absolute(node: ast.ImportFrom, module: str, is_package: bool) -> str:
    if node.level == 0:
        return node.module or ""
    parts = module.split(".")
    parents = parts[: len(parts) - node.level + is_package]
    return ".".join([*parents, *([node.module] if node.module else [])])


def _is_import_call(node: ast.Call) -> bool:
    name = ast.unparse(node.func).rpartition(".")[2]
    if name not in {"import_module", "__import__"} or not node.args:
        return False
    return isinstance(node.args[0], ast.Constant) and isinstance(node.args[0].value, str)


def faults_in_package_file(relative: str, source: str) -> list[str]:
    """What a file at `relative` (posix, from the repository root) imports against the rules, one sentence each."""
    path = Path(relative)
    room = path.parts[0]
    is_package = path.name == "__init__.py"
    module = ".".join(path.parent.parts if is_package else path.with_suffix("").parts)
    forbidden = set(PACKAGES) - MAY_IMPORT_OF_OURS[room] | MUST_NOT_IMPORT[room]
    faults: list[str] = []
    for imported in imports_in(source, module, is_package):
        where = f"{relative}:{imported.line} imports {imported.module}"
        if imported.root in forbidden:
            faults.append(f"{where}: {room} must not import {imported.root}")
        elif room == "ttt_core" and not _ttt_core_may_import(relative, imported):
            faults.append(f"{where}: ttt_core needs torch and the standard library only")
        elif _recipe_of(path) and _is_another_recipe(_recipe_of(path), imported.module):
            faults.append(f"{where}: a recipe never imports a recipe")
    return faults


def _ttt_core_may_import(relative: str, imported: Import) -> bool:
    if imported.root in {"torch", "ttt_core"} or imported.root in sys.stdlib_module_names:
        return True
    return imported.on_call and imported.root in TTT_CORE_ON_CALL.get(relative, set())


def _recipe_of(path: Path) -> str:
    is_recipe = path.parts[:2] == ("experiments", "recipes") and path.name != "__init__.py"
    return path.stem if is_recipe else ""


def _is_another_recipe(recipe: str, module: str) -> bool:
    parts = module.split(".")
    return parts[:2] == ["experiments", "recipes"] and len(parts) > 2 and parts[2] != recipe


def faults_in_notebook(relative: str, text: str) -> list[str]:
    cells = [cell["source"] for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    forbidden = set(PACKAGES) - MAY_IMPORT_OF_OURS["notebooks"] | MUST_NOT_IMPORT["notebooks"]
    faults: list[str] = []
    for cell in cells:
        lines = "".join(cell).splitlines()
        source = "\n".join(line for line in lines if not line.lstrip().startswith(("%", "!")))
        for imported in imports_in(source, "notebook"):
            if imported.root in forbidden:
                faults.append(f"{relative} imports {imported.module}: notebooks call analysis only")
    return faults


def files_of(folder: str, pattern: str = "*.py") -> Iterator[Path]:
    return (path for path in sorted((ROOT / folder).rglob(pattern)) if ".ipynb_checkpoints" not in path.parts)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_import_points_down(package: str) -> None:
    files = list(files_of(package))
    assert files, f"{package} has no Python file"
    faults = [
        fault
        for path in files
        for fault in faults_in_package_file(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))
    ]
    assert not faults, "\n".join(faults)


def test_notebooks_call_analysis_only() -> None:
    faults = [
        fault
        for path in files_of("notebooks", "*.ipynb")
        for fault in faults_in_notebook(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))
    ]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    ("relative", "source"),
    [
        ("ttt_core/layer.py", "import numpy"),
        ("ttt_core/layer.py", "def draw():\n    import matplotlib"),
        ("ttt_core/monitor.py", "import matplotlib.pyplot as plt"),
        ("ttt_core/state_file.py", "from safetensors.torch import save_file"),
        ("ttt_core/hosts.py", "def find():\n    from backbones import mounting"),
        ("ttt_core/hosts.py", "import importlib\nimportlib.import_module('backbones.mounting')"),
        ("backbones/mounting/host.py", "from experiments.harness import tracking"),
        ("backbones/mounting/host.py", "from ...experiments import harness"),
        ("backbones/speech/audio.py", "def log():\n    import mlflow"),
        ("experiments/harness/report.py", "def draw():\n    from analysis import figures"),
        ("experiments/recipes/one.py", "from experiments.recipes.two import ARMS"),
        ("experiments/recipes/one.py", "from experiments.recipes import two"),
        ("experiments/recipes/one.py", "from .two import ARMS"),
        ("experiments/recipes/one.py", "from . import two"),
        ("analysis/tables.py", "class Row:\n    def load(self):\n        import torch"),
        ("analysis/tables.py", "from ttt_core import TTTConfig"),
    ],
)
def test_an_import_that_points_up_is_found(relative: str, source: str) -> None:
    assert len(faults_in_package_file(relative, source)) == 1


@pytest.mark.parametrize(
    ("relative", "source"),
    [
        ("ttt_core/layer.py", "import math\nfrom torch import nn\nfrom .config import TTTConfig"),
        ("ttt_core/monitor.py", "def plot():\n    import matplotlib.pyplot as plt"),
        ("ttt_core/state_file.py", "def save():\n    from safetensors.torch import save_file"),
        ("backbones/mounting/__init__.py", "from .host import TransformersHost\nfrom ttt_core import TTTLayer"),
        (
            "experiments/recipes/one.py",
            "from experiments.harness import run\nfrom ..data import spec",
        ),
        ("experiments/recipes/__init__.py", "from . import one, two"),
        ("analysis/tables.py", "import mlflow, numpy\nfrom analysis.store import runs"),
    ],
)
def test_an_import_that_points_down_is_allowed(relative: str, source: str) -> None:
    assert faults_in_package_file(relative, source) == []


def test_a_notebook_that_imports_torch_is_found() -> None:
    cells = [{"cell_type": "code", "source": ["%matplotlib inline\n", "import torch\n", "import analysis"]}]
    assert len(faults_in_notebook("notebooks/x.ipynb", json.dumps({"cells": cells}))) == 1


def test_ttt_core_imports_and_runs_where_only_torch_is_installed() -> None:
    program = """
        import importlib.abc, re, sys
        from importlib import metadata

        def names_needed(distribution):  # the import names of a distribution and of all that it declares to need
            needed = [distribution]
            for name in needed:
                for requirement in metadata.requires(name) or []:
                    found = re.match(r"[\\w.-]+", requirement).group()
                    if "extra ==" not in requirement and found not in needed and installed(found):
                        needed.append(found)
            normal = {re.sub("[-_.]+", "-", name).lower() for name in needed}
            owners = metadata.packages_distributions().items()
            return {top for top, dists in owners if {re.sub("[-_.]+", "-", d).lower() for d in dists} & normal}

        def installed(name):
            try:
                return bool(metadata.version(name))
            except metadata.PackageNotFoundError:
                return False

        allowed = names_needed("torch") | set(sys.stdlib_module_names) | {"torch", "ttt_core"}

        class Refuse(importlib.abc.MetaPathFinder):
            def find_spec(self, fullname, path=None, target=None):
                if fullname.partition(".")[0] not in allowed:
                    raise ModuleNotFoundError(f"blocked by the test: {fullname}", name=fullname)
                return None

        import torch
        before = set(sys.modules)
        sys.meta_path.insert(0, Refuse())
        try:
            import transformers
        except ModuleNotFoundError:
            pass
        else:
            raise SystemExit("the block does not block")
        from ttt_core import TTTConfig, TTTLayer
        layer = TTTLayer(TTTConfig(hidden_size=12, num_heads=2, mini_batch_size=16))
        output = layer(torch.randn(1, 21, 12))[0]
        output.sum().backward()
        print(tuple(output.shape))
    """
    finished = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(program)], cwd=ROOT, capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.strip() == "(1, 21, 12)"


def test_no_file_is_longer_than_a_reader_can_hold() -> None:
    lengths = {
        path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for folder in (*PACKAGES, "tests", "benchmarks")
        for path in files_of(folder)
    }
    for name, lines in lengths.items():
        if LONG_FILE_LINES < lines <= LONGEST_FILE_LINES:
            warnings.warn(f"{name} has {lines} lines; split it before it passes {LONGEST_FILE_LINES}", stacklevel=1)
    too_long = {name: lines for name, lines in lengths.items() if lines > LONGEST_FILE_LINES}
    assert not too_long, f"longer than {LONGEST_FILE_LINES} lines: {too_long}"


def test_no_tracked_file_names_a_machine() -> None:
    # Written in pieces, so that this file does not name one either.
    machine_paths = re.compile(
        r"(?<![\w.])/(?:root|work|home/\w+|opt/\w+|tmp/\w+)/" + r"|file:/{2,}\w|https?://(?:10\.|192\.168\.)"
    )
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("not a git checkout: runs in a clone")
    named: list[str] = []
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if not path.is_file():
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a tensor file
        named += [
            f"{name}:{n}: {line.strip()[:120]}"
            for n, line in enumerate(text.splitlines(), 1)
            if machine_paths.search(line)
        ]
    assert not named, "\n".join(named)
