"""What an arm leaves behind: the trained difference, a spoken sample with its text, the curves of its inner weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.data.dataset import ConversationSet
from experiments.harness.tracking import RunLogger
from experiments.spoken.backbone import Loader, spoken_backbone
from experiments.spoken.configuration import Arm, SpokenExperiment
from ttt_core import TTTMonitor


def save_artifacts(
    config: SpokenExperiment,
    arm: Arm,
    model: Any,
    validation: ConversationSet,
    loader: Loader,
    logger: RunLogger,
    folder: Path,
) -> None:
    """Writes the arm's files into `folder` and attaches them to its run."""
    backbone = spoken_backbone(config.backbone)
    (folder / "memory.txt").write_text(f"{backbone.memory_of(config, arm)}\n")
    written = [folder / "memory.txt"]
    if arm.ttt is not None:
        backbone.save_difference(model, folder / "trained_difference.safetensors")
        written.append(folder / "trained_difference.safetensors")
    else:
        logger.set_tag("trained_difference", "none: this arm mounts no TTT; its weights are in checkpoints/last.ckpt")
    written += backbone.save_sample(config, model, validation, loader, folder)
    for path in written:
        logger.log_artifact(path)


def save_monitor(monitor: TTTMonitor, logger: RunLogger, folder: Path) -> None:
    """Draws the curves of the inner weights, and attaches them with their numbers."""
    (folder / "figures").mkdir(exist_ok=True)
    logger.log_artifact(monitor.plot_evolution(folder / "figures" / "inner_weights.png"), "figures")
    logger.log_artifact(monitor.csv_path)


def write_sample_text(folder: Path, lines: Mapping[str, str]) -> Path:
    """`sample.txt`, one `name: value` a line."""
    path = folder / "sample.txt"
    path.write_text("".join(f"{name}: {value}\n" for name, value in lines.items()))
    return path


def numbers_line(numbers: list[int]) -> str:
    """Token ids or units for a sample's text; `none` where there are none."""
    return " ".join(map(str, numbers)) or "none"
