"""Table, CSV files, metrics of the ledger, figures, and a sentence for each view."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from experiments.harness.csv_file import write_csv
from experiments.harness.estimates import Estimate
from experiments.harness.study import FinishedArm, Report
from experiments.harness.text_table import aligned
from experiments.quality.configuration import DetectorExperiment
from experiments.quality.evaluation import FALSE_POSITIVE_RATES
from experiments.quality.figures import draw_examples, draw_rocs
from experiments.quality.results import GROUPS, ViewFindings, group_of, parent_metrics, read_views


def report_detector(
    experiment: DetectorExperiment, folder: Path, uri: str, finished: Sequence[FinishedArm]
) -> Report:  # fmt: skip
    """The error rates of every view, and what the ledger reads."""
    views = read_views(experiment, finished)
    if not views:
        return Report(table="no arm finished: nothing can be said")
    figures = folder / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    return Report(
        table=_table(experiment, views),
        figures=[draw_rocs(figures, experiment, views), draw_examples(figures, experiment, views)],
        files=[
            write_csv(folder / "kinds.csv", _KIND_COLUMNS, _kind_rows(views)),
            write_csv(
                folder / "roc.csv", ("view", "kind", "false_positive_rate", "true_positive_rate"), _roc_rows(views)
            ),
            write_csv(
                folder / "examples.csv", ("view", "kind", "onset_s", "threshold", "end_s", "deviation"),
                _example_rows(views),
            ),
        ],
        metrics=parent_metrics(views),
        notes=[sentence(experiment, name, view) for name, view in views.items()],
    )  # fmt: skip


def sentence(experiment: DetectorExperiment, name: str, view: ViewFindings) -> str:
    """What a view tells, and the kind that it tells worst, in one sentence."""
    parts = []
    for group in GROUPS:
        kinds = {kind: own for kind, own in view.kinds.items() if group_of(kind) == group}
        kind, own = min(kinds.items(), key=lambda pair: pair[1].auc.mean)
        parts.append(
            f"of {group} damage {kind} is told worst (area under the ROC {_auc(own.auc)}, onset within "
            f"{experiment.tolerated_onset_s:g} s in {own.onset_share:.0%} of streams)"
        )
    return f"{name}: {view.false_alarms} false alarms an hour; {'; '.join(parts)}"


def _auc(found: Estimate) -> str:
    return f"{found.mean:.3f}" if math.isnan(found.low) else f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]"


def _table(experiment: DetectorExperiment, views: Mapping[str, ViewFindings]) -> str:
    rows = [
        [
            "view",
            "damage",
            "area under ROC",
            f"onset within {experiment.tolerated_onset_s:g} s",
            "delay",
            "given away by",
        ]
    ]
    for name, view in views.items():
        for kind, own in view.kinds.items():
            delay = f"{own.delay_s:.1f} s" if math.isfinite(own.delay_s) else "never"
            onsets = f"{own.onset_share:.2f} [{own.onsets.low:.2f}, {own.onsets.high:.2f}]"
            rows.append([name, kind, _auc(own.auc), onsets, delay, own.measure])
    alarms = [["view", "false alarms an hour", "clean hours", "threshold by seed"]]
    for name, view in views.items():
        thresholds = " ".join(f"{each.threshold:.2f}" for each in view.evaluations)
        alarms.append([name, str(view.false_alarms), f"{view.false_alarms.hours:.1f}", thresholds])
    seeds = max(len(view.evaluations) for view in views.values())
    return (
        f"{aligned(rows)}\n\n{aligned(alarms)}\n"
        f"seeds: {seeds}; set to {experiment.false_alarms_per_hour:g} false alarms an hour; area under the ROC: single "
        "windows against those of clean speech; delay: median from damage to alarm"
    )


_KIND_COLUMNS = (
    "view", "kind", "group", "auc", "auc_low", "auc_high", "share_of_onsets", "share_of_onsets_low",
    "share_of_onsets_high", "found_share", "delay_s", "measure",
)  # fmt: skip


def _kind_rows(views: Mapping[str, ViewFindings]) -> Iterable[Sequence[object]]:
    for name, view in views.items():
        for kind, own in view.kinds.items():
            yield [
                name, kind, group_of(kind), own.auc.mean, own.auc.low, own.auc.high, own.onset_share, own.onsets.low,
                own.onsets.high, own.found_share, own.delay_s, own.measure,
            ]  # fmt: skip


def _roc_rows(views: Mapping[str, ViewFindings]) -> Iterable[Sequence[object]]:
    """Means over seeds at equal false positive rates."""
    for name, view in views.items():
        for kind in view.kinds:
            rates = np.mean([each.kinds[kind].true_positive_rates for each in view.evaluations], axis=0)
            for false_rate, true_rate in zip(FALSE_POSITIVE_RATES, rates, strict=True):
                yield [name, kind, false_rate, true_rate]


def _example_rows(views: Mapping[str, ViewFindings]) -> Iterable[Sequence[object]]:
    """The first validation conversation of the first seed."""
    for name, view in views.items():
        first = view.evaluations[0]
        for kind, windows in first.examples.items():
            onset_s = first.kinds[kind].onsets[0].onset_s
            for end_s, size in windows:
                yield [name, kind, onset_s, first.threshold, end_s, size]
