"""What is left of arms that trained a model and looked at it in several ways: folders of finished views, by seed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from experiments.harness.arm_process import is_finished
from experiments.harness.study import FinishedArm

VIEWS_FOLDER = "views"


def view_folders(names: Sequence[str], finished: Sequence[FinishedArm]) -> dict[str, dict[int, Path]]:
    """{view: {seed: folder}} in the order of `names`, seeds rising; a view that no seed finished is left out."""
    folders: dict[str, dict[int, Path]] = {name: {} for name in names}
    for arm in sorted(finished, key=lambda arm: arm.seed):
        for path in sorted((arm.task.folder / VIEWS_FOLDER).glob("*")):
            if path.name in folders and is_finished(path):
                folders[path.name][arm.seed] = path
    return {name: by_seed for name, by_seed in folders.items() if by_seed}


def paired_view_folders(names: Sequence[str], finished: Sequence[FinishedArm]) -> dict[str, dict[int, Path]]:
    """The same under equal seeds, so that views can be compared in pairs: those that finished every view begun."""
    folders = view_folders(names, finished)
    common = set.intersection(*(set(by_seed) for by_seed in folders.values())) if folders else set[int]()
    kept = {name: {seed: by_seed[seed] for seed in sorted(common)} for name, by_seed in folders.items()}
    return kept if common else {}


def unfinished(finished: Sequence[FinishedArm]) -> str:
    """A line for each arm that did not come to its end; empty when all did."""
    return "\n".join(
        f"{arm.task.label}: {'not run' if arm.outcome is None else arm.outcome.status.lower()}"
        for arm in finished
        if arm.outcome is None or arm.outcome.status != "FINISHED"
    )
