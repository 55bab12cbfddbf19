"""What is made of all runs: the table, the CSV, the metrics of the ledger and the figure."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy
from matplotlib.figure import Figure

from experiments.harness.estimates import Estimate
from experiments.harness.study import FinishedArm, Report
from experiments.harness.text_table import aligned
from experiments.instability.configuration import InstabilityExperiment
from experiments.instability.judging import first_alarm
from experiments.instability.results import JudgedRun, arm_findings, judge, of_arm, predictor
from ttt_core.monitor import MAX_HEALTHY_W1

RESOLUTION_DOTS_PER_INCH = 130


def report_instability(
    experiment: InstabilityExperiment, folder: Path, uri: str, finished: Sequence[FinishedArm]
) -> Report:
    runs = judge(experiment, finished, uri)
    if not runs:
        return Report(table=f"no seed finished its reference arm {experiment.reference!r}: nothing can be judged")
    found = {arm: arm_findings(experiment, runs, arm) for arm in experiment.arm_names if of_arm(runs, arm)}
    metrics = predictor(runs)
    for arm, own in found.items():
        for what, value in own.items():
            metrics[f"instability_{arm}/{what}"] = value.mean
            if not math.isnan(value.low):
                metrics |= {f"instability_{arm}/{what}_low": value.low, f"instability_{arm}/{what}_high": value.high}
    return Report(
        table=_table(experiment, runs, found),
        figures=[_figure(folder / "figures", experiment, runs)],
        files=[_write_csv(folder / "runs.csv", runs)],
        metrics=metrics,
        notes=sentences(metrics),
    )


def sentences(metrics: Mapping[str, float]) -> list[str]:
    """What the monitor's signs say about a run, from the shares that were logged."""
    lines = []
    for name in ("lost", "healthy"):
        start = f"instability/share_of_{name}_runs_"
        signs = [
            f"{share:.0%} {metric.removeprefix(start).replace('_', ' ')}"
            for metric, share in metrics.items()
            if metric.startswith(start)
        ]
        if signs:
            lines.append(f"of {metrics[f'instability/{name}_runs']:.0f} {name} runs, {', '.join(signs)}")
    return lines


def _table(
    experiment: InstabilityExperiment, runs: Sequence[JudgedRun], found: Mapping[str, Mapping[str, Estimate]]
) -> str:
    header = [
        "arm", "inner model", "base_lr", "outer rate", "seeds", "lost", "diverged", "lost at step", "first alarm",
        "alarm's lead", "largest |W1|", "passes 10", "inner loss end/start", "recall", "against reference", "cured",
    ]  # fmt: skip
    rows = [header]
    for name, own in found.items():
        arm, mine = experiment.arm_named(name), of_arm(runs, name)
        shown = {what: format(own[what].mean, form) if what in own else "-" for what, form in _FORMS.items()}
        rows.append([
            name, arm.ttt.inner_model, f"{arm.ttt.resolved_base_lr:g}", f"x{arm.outer_rate_factor:g}", str(len(mine)),
            shown["lost_share"], shown["diverged_share"], shown["lost_at_step"], _alarms(mine),
            shown["lead_of_first_alarm_steps"], shown["largest_W1"], shown["passes_10_share"],
            shown["inner_loss_end_over_start"], shown["recall"],
            str(own.get("recall_against_reference", "-")), shown["cured_share"],
        ])  # fmt: skip
    return (
        f"{aligned(rows)}\nlost: text loss over {experiment.smoothed_steps} steps stays {experiment.lost_nats} nats "
        f"above {experiment.reference!r} on the same batches to the end; shares are of seeds; recall by guessing: "
        f"{experiment.stream.chance_recall:.3f}"
    )


_FORMS = {
    "lost_share": ".0%", "diverged_share": ".0%", "lost_at_step": ".0f", "lead_of_first_alarm_steps": "+.0f",
    "inner_loss_end_over_start": ".2f", "largest_W1": ".3g", "passes_10_share": ".0%", "recall": ".2f",
    "cured_share": ".0%",
}  # fmt: skip


def _alarms(runs: Sequence[JudgedRun]) -> str:
    """The commonest first alarm and its mean step."""
    firsts = [alarm for run in runs if (alarm := first_alarm(run.alarms)) is not None]
    if not firsts:
        return "none"
    kind, count = Counter(kind for kind, _ in firsts).most_common(1)[0]
    step = numpy.mean([step for other, step in firsts if other == kind])
    return f"{kind} at {step:.0f} ({count} of {len(runs)})"


def _write_csv(path: Path, runs: Sequence[JudgedRun]) -> Path:
    metrics = sorted({name for run in runs for name in run.metrics if name.startswith("instability/")})
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["arm", "seed", "inner_model", "base_lr", "outer_rate_factor", "lost_at_step", "recall",
                         *metrics])  # fmt: skip
        for run in runs:
            arm = run.arm
            writer.writerow([
                arm.name, run.seed, arm.ttt.inner_model, arm.ttt.resolved_base_lr, arm.outer_rate_factor, run.lost_at,
                run.recall, *(run.metrics.get(name, "") for name in metrics),
            ])  # fmt: skip
    return path


def _figure(folder: Path, experiment: InstabilityExperiment, runs: Sequence[JudgedRun]) -> Path:
    """Losses of all runs on the left; on the right every run's largest |W1|, lost ones crossed out."""
    folder.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(15, 5.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for place, name in enumerate(experiment.arm_names):
        mine = of_arm(runs, name)
        color = f"C{place % 10}"
        for run in mine:
            steps, losses = zip(*sorted(run.losses.items()), strict=True) if run.losses else ((), ())
            size = experiment.smoothed_steps
            means = [numpy.mean(losses[max(0, i + 1 - size) : i + 1]) for i in range(len(losses))]
            left.plot(steps, means, color=color, alpha=0.7, label=name if run is mine[0] else None)
            alarm = first_alarm(run.alarms)
            if alarm is not None and int(alarm[1]) in run.losses:
                left.plot(alarm[1], means[steps.index(int(alarm[1]))], marker="v", color=color)
            largest = run.metrics.get("instability/largest_W1")
            if largest is not None:
                right.plot(place, largest, marker="x" if run.is_lost else "o", color=color)
    left.set(title="text loss (triangle: the monitor's first alarm)", xlabel="training step", ylabel="nats per token")
    right.axhline(MAX_HEALTHY_W1, color="black", linestyle="--", label="claimed limit of a healthy run")
    right.set(title="largest |W1| of every run (cross: lost run)", yscale="log")
    right.set_xticks(
        range(len(experiment.arm_names)), experiment.arm_names, rotation=60, ha="right", fontsize="x-small"
    )
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize="x-small")
    path = folder / "instability.png"
    figure.savefig(path, dpi=RESOLUTION_DOTS_PER_INCH)
    return path
