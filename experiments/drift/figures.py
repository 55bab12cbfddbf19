"""Pictures of the drift experiment, from the curves and measures of finished arms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.drift import metric_names as names
from experiments.drift.claimed import CLIFF_NATS
from experiments.drift.configuration import CLAIMED_UPDATES, DECAY_SUFFIX, DriftExperiment
from experiments.drift.results import ModelResult, StateResult, word_loss_differences
from experiments.harness.estimates import Estimate, estimate

RESOLUTION_DOTS_PER_INCH = 130
LEAST_ERROR_SHOWN = 1e-9
COLOURS = {
    "fp64": "grey", "fp32": "black", "bf16": "tab:red", "bf16_stochastic": "tab:orange", "fp16": "tab:blue",
    "bf16_compensated": "tab:green", "bf16_compute": "tab:purple", "autocast_guarded": "tab:cyan",
    "autocast_unguarded": "tab:pink",
}  # fmt: skip
"""One colour for each treatment in every figure."""

EXPONENTS_SHOWN = ("bf16", "bf16_stochastic", "bf16_compensated", "fp16")
"""Treatments whose committed weights are rounded."""


def draw_all(
    folder: Path, experiment: DriftExperiment, states: Sequence[StateResult], models: dict[str, ModelResult]
) -> list[Path]:
    """Writes every PNG that the finished arms allow, and gives their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn: list[Path] = []
    if states and models:
        drawn.append(_main_figure(folder / "drift.png", experiment, states, models))
    if states:
        drawn.append(_arms_figure(folder / "state_by_updates.png", states))
        drawn.append(_clocks_figure(folder / "updates_or_tokens.png", states))
        drawn.append(_exponents_figure(folder / "growth_exponents.png", states))
    return drawn


def _main_figure(
    path: Path, experiment: DriftExperiment, states: Sequence[StateResult], models: dict[str, ModelResult]
) -> Path:
    """Error of a state by updates; beside it, what the same rounding does to a trained model."""
    figure = Figure(figsize=(14, 5.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    shown = _default_setting(states)
    for result in shown:
        _draw_measure(left, result, names.STATE_ERROR)
    first = shown[0]
    left.set(
        title=f"Rounding adds up in the state ({first.arm.inner_model}, mini-batch {first.arm.mini_batch_size}, "
        f"{first.kind})",
        xlabel="updates", ylabel="distance from the FP64 state, relative",
    )  # fmt: skip
    left.set(xscale="log", yscale="log", ylim=(LEAST_ERROR_SHOWN, 2))
    _mark(left, CLAIMED_UPDATES, "claimed: gibberish from here")
    part = experiment.model_part
    for treatment, result in models.items():
        if treatment != result.against:
            _draw_differences(right, treatment, word_loss_differences(models, treatment, part.position_edges))
    right.axhline(CLIFF_NATS, color="tab:brown", linestyle="-.", linewidth=1, label=f"{CLIFF_NATS} nats")
    right.set(
        title="... and what it costs a trained model", xlabel="position in the stream",
        ylabel="nats per word above the reference", xscale="log",
    )  # fmt: skip
    # At least so much is shown, lest a thousandth of a nat look like a cliff.
    right.set_ylim(min(right.get_ylim()[0], -0.2 * CLIFF_NATS), max(right.get_ylim()[1], 1.2 * CLIFF_NATS))
    _mark(right, part.claimed_position, f"{CLAIMED_UPDATES} updates")
    _mark(right, CLAIMED_UPDATES, f"{CLAIMED_UPDATES} tokens", style=":")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small", loc="lower left" if axes is left else "upper left", ncols=2)
    figure.suptitle(f"{experiment.recipe}, scale {experiment.scale}")
    figure.savefig(path, dpi=RESOLUTION_DOTS_PER_INCH)
    return path


def _default_setting(states: Sequence[StateResult]) -> list[StateResult]:
    """All treatments but references of the first arm, on the last kind of vectors, at the default step size."""
    arm, kind = states[0].arm, states[-1].kind
    return [
        each
        for each in states
        if each.arm == arm and each.kind == kind and each.step_factor == 1.0 and not _is_reference(each)
    ]


def _is_reference(result: StateResult) -> bool:
    return result.at_the_end(names.STATE_ERROR).mean == 0


def _arms_figure(path: Path, states: Sequence[StateResult]) -> Path:
    """State error, inner-loss gap and lost share by updates: a row a measure, a column an arm."""
    arms = list(dict.fromkeys(result.arm for result in states))
    measures = (names.STATE_ERROR, names.INNER_LOSS_GAP, names.LOST_SHARE)
    figure = Figure(figsize=(4.2 * len(arms), 10), layout="constrained")
    grid = figure.subplots(len(measures), len(arms), squeeze=False, sharey="row")
    kind = states[-1].kind
    for column, arm in enumerate(arms):
        for row, measure in enumerate(measures):
            axes: Axes = grid[row][column]
            for result in states:
                if (
                    result.arm == arm
                    and result.kind == kind
                    and result.step_factor == 1.0
                    and not _is_reference(result)
                ):
                    _draw_measure(axes, result, measure)
            axes.set_xscale("log")
            if measure == names.STATE_ERROR:
                axes.set(yscale="log", ylim=(LEAST_ERROR_SHOWN, 2))
            elif measure == names.INNER_LOSS_GAP:
                axes.set_yscale("symlog", linthresh=0.01)
            _mark(axes, CLAIMED_UPDATES, None)
            axes.grid(alpha=0.3)
            axes.set(xlabel="updates", title=f"{arm.inner_model}, mini-batch {arm.mini_batch_size}")
            if column == 0:
                axes.set_ylabel(measure.replace("_", " "))
    grid[0][0].legend(fontsize="x-small")
    figure.suptitle(f"{kind}, default step size")
    figure.savefig(path, dpi=RESOLUTION_DOTS_PER_INCH)
    return path


def _clocks_figure(path: Path, states: Sequence[StateResult]) -> Path:
    """The BF16 state's error of every arm, once by updates and once by tokens: the same only at mini-batch 1."""
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    kind = states[-1].kind
    for result in states:
        if result.treatment == "bf16" and result.kind == kind and result.step_factor == 1.0:
            arm = result.arm
            error = numpy.exp(numpy.log(result.streams(names.STATE_ERROR)).mean(axis=0))
            style = {"label": f"{arm.inner_model}, mini-batch {arm.mini_batch_size}", "marker": "o", "markersize": 3}
            left.plot(result.updates, error, **style)
            right.plot(result.updates * arm.mini_batch_size, error, **style)
    for axes, label in ((left, "updates"), (right, "tokens")):
        axes.set(xscale="log", yscale="log", xlabel=label, title=f"bf16 by {label} ({kind}, default step size)")
        _mark(axes, CLAIMED_UPDATES, None)
        axes.grid(alpha=0.3)
    left.set_ylabel("distance from the FP64 state, relative")
    left.legend(fontsize="small")
    figure.savefig(path, dpi=RESOLUTION_DOTS_PER_INCH)
    return path


def _exponents_figure(path: Path, states: Sequence[StateResult]) -> Path:
    """Growth exponents of the state's error with their intervals, a line a setting: 1 is "updates x eps"."""
    settings = list(dict.fromkeys(result.setting for result in states))
    figure = Figure(figsize=(14, 1.5 + 0.27 * len(settings)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, name in ((left, "whole streams"), (right, "their late part")):
        for place, treatment in enumerate(EXPONENTS_SHOWN):
            lift = 0.15 * (place - (len(EXPONENTS_SHOWN) - 1) / 2)
            own = [result for result in states if result.treatment == treatment]
            rows = [
                (settings.index(result.setting) + lift, result.exponent if axes is left else result.late_exponent)
                for result in own
            ]
            _draw_exponents(axes, treatment, rows)
        for exponent, meaning in ((0.0, "bounded"), (0.5, "random walk"), (1.0, "updates x eps")):
            axes.axvline(exponent, color="grey", linestyle=":")
            axes.text(exponent, -0.55, meaning, ha="center", fontsize="small")
        axes.set(xlim=(-0.6, 1.6), ylim=(len(settings) - 0.5, -0.9), title=f"growth exponent of the state, {name}")
        axes.set_xlabel("exponent [95 % over streams]")
    left.set_yticks(range(len(settings)), settings, fontsize="x-small")
    right.legend(fontsize="small")
    figure.savefig(path, dpi=RESOLUTION_DOTS_PER_INCH)
    return path


def _draw_exponents(axes: Axes, treatment: str, rows: Sequence[tuple[float, Estimate]]) -> None:
    kept = [(row, found) for row, found in rows if not math.isnan(found.mean)]
    axes.errorbar(
        [found.mean for _, found in kept], [row for row, _ in kept],
        xerr=[0.0 if math.isnan(found.low) else found.mean - found.low for _, found in kept],
        fmt="o", markersize=4, color=COLOURS[treatment], alpha=0.7, label=treatment,
    )  # fmt: skip


def _draw_measure(axes: Axes, result: StateResult, measure: str) -> None:
    """Mean over streams with its interval as a band; on a logarithmic axis the geometric mean."""
    values = result.streams(measure)
    if measure in (names.STATE_ERROR, names.OUTPUT_ERROR):
        kept = [
            (n, estimate(numpy.log(row).tolist())) for n, row in zip(result.updates, values.T, strict=True) if row.all()
        ]
        found = [
            Estimate(mean=math.exp(e.mean), low=math.exp(e.low), high=math.exp(e.high), seeds=e.seeds) for _, e in kept
        ]
        _draw(axes, result.treatment, [float(n) for n, _ in kept], found)
    else:
        _draw(axes, result.treatment, result.updates.tolist(), [estimate(row.tolist()) for row in values.T])


def _draw_differences(axes: Axes, treatment: str, rows: Sequence[tuple[tuple[int, int], Estimate]]) -> None:
    places = [math.sqrt(max(first, 1) * end) for (first, end), _ in rows]
    _draw(axes, treatment, places, [found for _, found in rows])


def _draw(axes: Axes, treatment: str, places: Sequence[float], found: Sequence[Estimate]) -> None:
    colour = COLOURS.get(treatment.removesuffix(DECAY_SUFFIX), "tab:brown")
    style = "--" if treatment.endswith(DECAY_SUFFIX) else "-"
    axes.plot(
        places, [each.mean for each in found], style, marker="o", markersize=3, color=colour, label=treatment
    )  # fmt: skip
    banded = [(place, each) for place, each in zip(places, found, strict=True) if math.isfinite(each.low)]
    axes.fill_between(
        [place for place, _ in banded], [each.low for _, each in banded], [each.high for _, each in banded],
        color=colour, alpha=0.12,
    )  # fmt: skip


def _mark(axes: Axes, place: float, label: str | None, style: str = "--") -> None:
    axes.axvline(place, color="black", linestyle=style, linewidth=1, label=label)
