"""What is made of all views: the table, the CSV, the metrics of the ledger, the figures, and sentences computed."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from experiments.endless.configuration import EndlessExperiment, View
from experiments.endless.figures import draw_all
from experiments.endless.results import ViewResult, findings, read_views
from experiments.harness.estimates import Estimate
from experiments.harness.finished_views import unfinished
from experiments.harness.study import FinishedArm, Report
from experiments.harness.text_table import aligned

EQUILIBRIUM_EXPONENT = 0.05
"""An exponent within this of 0, with its whole interval, is called an equilibrium: a change under 12 % a decade."""

Found = Mapping[str, Mapping[str, Estimate]]


def report_endless(
    experiment: EndlessExperiment, folder: Path, uri: str, finished: Sequence[FinishedArm]
) -> Report:  # fmt: skip
    """The table of views, and every estimate as a metric of the parent run."""
    views = read_views(experiment.views, finished)
    if not views:
        return Report(table=unfinished(finished) or "no view finished")
    found = findings(experiment, views)
    tables = [unfinished(finished), _table(experiment, views, found)]
    return Report(
        table="\n\n".join(table for table in tables if table),
        figures=draw_all(folder / "figures", experiment, views),
        files=[_write_findings(folder / "findings.csv", found), _write_curves(folder / "curves.csv", views)],
        metrics=parent_metrics(found),
        notes=[
            line
            for name, own in found.items()
            if _learns_for_ever(views[name].view) and (line := equilibrium(name, own))
        ],
    )


def parent_metrics(found: Found) -> dict[str, float]:
    """`endless_VIEW/WHAT`, with `_low` and `_high` of its interval where there are several seeds."""
    metrics = {}
    for view, own in found.items():
        for what, value in own.items():
            metrics[f"endless_{view}/{what}"] = value.mean
            if not math.isnan(value.low):
                metrics |= {f"endless_{view}/{what}_low": value.low, f"endless_{view}/{what}_high": value.high}
    return metrics


def equilibrium(view: str, own: Mapping[str, Estimate]) -> str:
    """Whether the inner norm settles, in a sentence; empty without TTT."""
    exponent = own.get("norm_growth_exponent")
    if exponent is None:
        return ""
    if math.isnan(exponent.low):
        return f"{view}: the inner norm grows as position^{exponent.mean:.2f} (one seed: no interval)"
    if exponent.high < -EQUILIBRIUM_EXPONENT:
        return f"{view}: the inner norm still shrinks, as position^{exponent.mean:.2f} (exponent {exponent})"
    if exponent.low > -EQUILIBRIUM_EXPONENT and exponent.high < EQUILIBRIUM_EXPONENT:
        return f"{view}: the inner norm has an equilibrium (exponent {exponent} over the last decade)"
    if exponent.low > EQUILIBRIUM_EXPONENT:
        return f"{view}: the inner norm keeps growing, as position^{exponent.mean:.2f} (exponent {exponent})"
    return f"{view}: whether the inner norm settles is open (exponent {exponent})"


def _learns_for_ever(view: View) -> bool:
    """False for views whose inner weights are reset, or never move: their norm has nothing to settle."""
    return view.ttt is not None and view.ttt.resolved_base_lr > 0 and view.reset_every is None


def _table(experiment: EndlessExperiment, views: Mapping[str, ViewResult], found: Found) -> str:
    columns = {
        "word loss young": ("word_loss_young", ".3f"),
        "old": ("word_loss_old", ".3f"),
        "recall young": ("recall_young", ".2f"),
        "old ": ("recall_old", ".2f"),
        "norm young": ("inner_norm_young", ".2f"),
        "old  ": ("inner_norm_old", ".2f"),
        "exponent": ("norm_growth_exponent", "+.2f"),
        "step young": ("effective_step_young", ".1%"),
        "old   ": ("effective_step_old", ".1%"),
    }
    for change in experiment.plan.topic_changes:
        columns[f"topic {change}: excess"] = (f"topic_excess_nats_at_{change}", "+.2f")
        columns[f"half-life {change}"] = (f"topic_half_life_positions_at_{change}", ".0f")
    header = ["view", "of", *(title.rstrip() for title in columns), "old recall against control", "control"]
    rows = [header]
    for name, result in views.items():
        cells = [_shown(found[name].get(what), form) for what, form in columns.values()]
        against = found[name].get("recall_against_control_old")
        rows.append([
            name, result.view.training, *cells, "-" if against is None else str(against), result.view.control or "-",
        ])  # fmt: skip
    seeds = len(next(iter(views.values())).seeds)
    young, old = experiment.trained_positions, experiment.plan.positions // 2
    return (
        f"{aligned(rows)}\n"
        f"{seeds} seeds; trained on T = {young} positions; young: {young} to {4 * young}, old: {old} to "
        f"{experiment.plan.positions} ({experiment.plan.positions // young} T); recall of facts "
        f"{experiment.model.reach} to {young} positions ago, by guessing {experiment.stream.chance_recall:.3f}; "
        f"no model goes below {experiment.stream.word_entropy_nats:.3f} nats per word"
    )


def _shown(value: Estimate | None, form: str) -> str:
    return "-" if value is None else format(value.mean, form)


def _write_findings(path: Path, found: Found) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["view", "what", "mean", "low_95", "high_95", "seeds"])
        for view, own in found.items():
            writer.writerows([view, what, v.mean, v.low, v.high, v.seeds] for what, v in own.items())
    return path


def _write_curves(path: Path, views: Mapping[str, ViewResult]) -> Path:
    """One row per view, seed and probe or bucket: what the figures are drawn from."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["view", "seed", "curve", "first_position", "end_position", "value"])
        for name, result in views.items():
            for seed, measures in zip(result.seeds, result.measures, strict=True):
                edges = measures.streams.position_edges
                for first, end in pairwise(edges):
                    loss, recall = measures.streams.word_loss_between(first, end), measures.recall_between(first, end)
                    writer.writerow([name, seed, "word_loss_nats", first, end, loss])
                    writer.writerow([name, seed, "recall", first, end, recall])
                for first, end in pairwise(measures.streams.distance_edges):
                    recall = measures.streams.recall_between(first, end)
                    writer.writerow([name, seed, "recall_by_distance", first, end, recall])
                for probe in measures.probes:
                    for what in ("inner_norm", "effective_step", "largest_weight"):
                        writer.writerow([name, seed, what, probe.position, probe.position, vars(probe)[what]])
    return path
