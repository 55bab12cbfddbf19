"""The pictures: a column for each backbone, a line for each arm, seconds of its own sound to the right."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.long_generation.configuration import LongGenerationExperiment
from experiments.long_generation.measures import curves_along
from experiments.long_generation.results import ArmFindings

RESOLUTION_DOTS_PER_INCH = 110
ROWS = (
    ("held_bytes", "bytes held by the stream"),
    ("real_time_factor", "compute, seconds a second"),
    ("cross_entropy_nats", "cross-entropy, nats a symbol"),
    ("share_of_streams_after_first_alarm", "share of streams after an alarm"),
)


def draw_streams(folder: Path, experiment: LongGenerationExperiment, arms: Sequence[ArmFindings]) -> list[Path]:
    """One picture for each length of streams."""
    folder.mkdir(parents=True, exist_ok=True)
    by_length = itertools.groupby(sorted(arms, key=lambda each: each.arm.stream_s), key=lambda each: each.arm.stream_s)
    return [_draw(folder, experiment, stream_s, list(own)) for stream_s, own in by_length]


def _draw(folder: Path, experiment: LongGenerationExperiment, stream_s: float, arms: Sequence[ArmFindings]) -> Path:
    backbones = list(dict.fromkeys(found.arm.backbone for found in arms))
    mixers = list(dict.fromkeys(found.arm.mixer for found in arms))
    figure = Figure(figsize=(max(6.5, 3.4 * len(backbones) + 0.8), 10.5), layout="constrained")
    figure.suptitle(f"{experiment.recipe} ({experiment.scale}): a model's own speech, nothing reset")
    panels = np.atleast_2d(figure.subplots(len(ROWS), len(backbones), sharex=True, squeeze=False))
    for found in arms:
        column = backbones.index(found.arm.backbone)
        curves = curves_along(found.arm, found.pieces, found.streams)
        for row, (measure, _) in enumerate(ROWS):
            points = [
                (end_s / 60, own[f"along/{measure}"]) for end_s, own in curves.items() if f"along/{measure}" in own
            ]
            colour = colormaps["tab10"](mixers.index(found.arm.mixer))
            panels[row, column].plot(
                *np.array(points).reshape(-1, 2).T, label=found.arm.mixer, color=colour, marker="o", markersize=2.5
            )
    for column, backbone in enumerate(backbones):
        panels[0, column].set_title(backbone)
        _dress(panels[:, column], next(found for found in arms if found.arm.backbone == backbone))
    for row, (_, label) in enumerate(ROWS):
        panels[row, 0].set_ylabel(label)
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(mixers))
    path = folder / f"streams_of_{stream_s / 60:g}_minutes.png"
    figure.savefig(path, dpi=RESOLUTION_DOTS_PER_INCH)
    return path


def _dress(panels: Sequence[Axes], found: ArmFindings) -> None:
    """Scales, and between which limits real speech lies."""
    held, factor, surprise, alarms = panels
    held.set_yscale("log")
    factor.set_ylim(bottom=0)
    surprise.axhspan(*found.real.usual_surprise, color="grey", alpha=0.2, label="real speech")
    alarms.set(ylim=(-0.03, 1.03), xlabel="minutes of the conversation")
    for panel in panels:
        panel.grid(alpha=0.3)
