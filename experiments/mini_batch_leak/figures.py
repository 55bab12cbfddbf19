"""The picture: what training promises, what decoding keeps, what is written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.harness.estimates import Estimate
from experiments.mini_batch_leak.configuration import Form, MiniBatchLeakExperiment
from experiments.mini_batch_leak.results import ArmResult

RESOLUTION_DOTS_PER_INCH = 130
COLOURS: dict[Form, str] = {"causal": "tab:blue", "leaky": "tab:red"}
LINES = ("-", "--", ":", "-.")
SMOOTHED_SHARE = 0.04
Found = Mapping[str, Mapping[str, Estimate]]


def draw_losses(
    folder: Path, experiment: MiniBatchLeakExperiment, arms: Mapping[str, ArmResult], found: Found
) -> Path:  # fmt: skip
    """Training losses; held-out loss read both ways; the share of turns that are sentences."""
    folder.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(17, 5.2), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.1, 1.6, 1.1))
    _training(left, experiment, arms)
    bars = {"parallel_loss_nats": ("all at once", 0.45), "streamed_loss_nats": ("one token a call", 1.0)}
    _bars(middle, arms, found, bars)
    middle.set(title="the same held-out text, read in two ways", ylabel="nats per token")
    figure.legend(*middle.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize="small")
    _bars(right, arms, found, {"written_whole_turns": ("written token by token", 1.0)})
    right.set(title="written turns that are whole sentences", ylabel="share", ylim=(0, 1.05))
    seeds = len(next(iter(arms.values())).runs)
    figure.suptitle(
        f"{experiment.recipe} ({experiment.scale}, seeds: {seeds}): a model decodes what it learned where its two bars "
        "are equally high; red was trained with mini-batches that read ahead"
    )
    path = folder / "losses.png"
    figure.savefig(path, dpi=RESOLUTION_DOTS_PER_INCH)
    return path


def _training(axes: Axes, experiment: MiniBatchLeakExperiment, arms: Mapping[str, ArmResult]) -> None:
    """Mean over seeds, averaged over a few steps: a colour for each form, a line style for each layer."""
    styles = {layer.name: LINES[place % len(LINES)] for place, layer in enumerate(experiment.layers)}
    size = max(1, round(SMOOTHED_SHARE * experiment.training.steps))
    for name, arm in arms.items():
        steps = sorted(arm.runs[0].losses)
        losses = numpy.mean([[run.losses[step] for step in steps] for run in arm.runs], axis=0)
        smooth = [losses[max(0, place + 1 - size) : place + 1].mean() for place in range(len(losses))]
        axes.plot(steps, smooth, color=COLOURS[arm.form], linestyle=styles[arm.layer.name], label=name)
    axes.set(title="training loss", xlabel="step", ylabel="nats per token", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="x-small")


def _bars(axes: Axes, arms: Mapping[str, ArmResult], found: Found, shown: Mapping[str, tuple[str, float]]) -> None:
    """One bar an arm for each of `shown`, {what: (label, opacity)}, with the interval over seeds."""
    width = 0.8 / len(shown)
    for place, (what, (label, opacity)) in enumerate(shown.items()):
        for number, (name, arm) in enumerate(arms.items()):
            value = found[name][what]
            error = None if math.isnan(value.low) else [[value.mean - value.low], [value.high - value.mean]]
            x = number + (place - (len(shown) - 1) / 2) * width
            axes.bar(
                x, value.mean, 0.92 * width, yerr=error, capsize=3, color=COLOURS[arm.form], alpha=opacity,
                label=f"{arm.form}, {label}" if number < 2 else None,
            )  # fmt: skip
    axes.set_xticks(range(len(arms)), list(arms), rotation=40, ha="right", fontsize="small")
    axes.set_axisbelow(True)
    axes.grid(alpha=0.3, axis="y")
