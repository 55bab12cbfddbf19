"""How an arm ended, written by its own process for the one that started it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from experiments.harness.tracking import RunStatus

OUTCOME_FILE = "outcome.json"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How an arm ended. run_id is None where it failed before its run was made."""

    status: RunStatus
    run_id: str | None
    message: str

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / OUTCOME_FILE).write_text(json.dumps(asdict(self)))


def read_outcome(folder: Path) -> Outcome | None:
    """What an arm's process wrote when it ended, or None."""
    path = folder / OUTCOME_FILE
    return Outcome(**json.loads(path.read_text())) if path.is_file() else None
