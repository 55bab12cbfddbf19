"""A recipe run as a user runs it, as a command in a folder of its own, for the tests that look at what it leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from experiments.harness import tracking

ROOT = Path(__file__).resolve().parents[1]
SMOKE_SECONDS = 280


@dataclass(frozen=True)
class FinishedCommand:
    """A command that ran in a folder of its own, with what it said and the runs it logged.

    recipe: of its run, where others were run in the same folder."""

    folder: Path
    output: str
    errors: str
    exit_code: int
    recipe: str = "*"

    @property
    def run_folder(self) -> Path:
        [config] = self.folder.glob(f"runs/{self.recipe}/*/*/config.json")
        return config.parent

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.folder / 'runs' / 'mlflow.db'}"

    def parent(self) -> tracking.LoggedRun:
        """The run of the experiment, above its arms."""
        return tracking.read_run(self.uri, json.loads((self.run_folder / "run.json").read_text())["run_id"])

    def logged(self, arm: str) -> tracking.LoggedRun:
        run_id = json.loads((self.run_folder / arm / "run.json").read_text())["run_id"]
        return tracking.read_run(self.uri, run_id)


def environment() -> dict[str, str]:
    unset = {"MLFLOW_TRACKING_URI", "TTT_DATA_CACHE"}
    kept = {name: value for name, value in os.environ.items() if name not in unset}
    return kept | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}


def command(recipe: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "experiments", recipe, "--scale", "smoke", *arguments]


def run_command(folder: Path, recipe: str, *arguments: str) -> FinishedCommand:
    ran = subprocess.run(
        command(recipe, *arguments), cwd=folder, env=environment(), capture_output=True, text=True,
        timeout=SMOKE_SECONDS, check=False,
    )  # fmt: skip
    return FinishedCommand(folder=folder, output=ran.stdout, errors=ran.stderr, exit_code=ran.returncode, recipe=recipe)
