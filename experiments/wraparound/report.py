"""What is made of all trainings and views: the table, the signatures, the figures, and the mechanics in words."""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.harness import metric_names as names
from experiments.harness.finished_views import unfinished
from experiments.harness.study import FinishedArm, Report
from experiments.harness.text_table import aligned, human_bytes
from experiments.wraparound.claimed import CLAIMED
from experiments.wraparound.configuration import MECHANICS, WraparoundExperiment
from experiments.wraparound.figures import draw_all
from experiments.wraparound.mechanics_arm import ARRAYS_FILE
from experiments.wraparound.mechanics_figure import draw_mechanics
from experiments.wraparound.results import ViewResult, read_views
from experiments.wraparound.signatures import (
    COLUMNS,
    EXPLANATIONS,
    NOT_ASKED_HERE,
    SYMPTOMS,
    Observation,
    Symptom,
    Verdict,
    judge,
    observe,
)

LENGTHS = ("inside", "past")
RESULT_AS_NUMBER = {"matches": 1.0, "undecided": 0.5, "contradicted": 0.0}


def report_wraparound(
    experiment: WraparoundExperiment, folder: Path, uri: str, finished: Sequence[FinishedArm]
) -> Report:
    """The table of views, and for each training length which explanation matches."""
    views = read_views(experiment, finished, uri)
    tables = [unfinished(finished), _claimed_table(finished), _view_table(experiment, views)]
    metrics: dict[str, float] = {}
    rows: list[dict[str, object]] = []
    for length in LENGTHS:
        for symptom in SYMPTOMS:
            observations = observe(experiment, views, length, symptom)
            if observations:
                verdicts = judge(observations)
                tables.append(_signature_table(length, symptom, observations, verdicts))
                metrics |= _signature_metrics(length, symptom, observations, verdicts)
                rows += _signature_rows(length, symptom, observations)
    files = [_write_csv(folder / "signatures.csv", rows)] if rows else []
    figures = draw_all(folder / "figures", experiment, views) if views else []
    arrays = folder / MECHANICS / ARRAYS_FILE
    if arrays.is_file():
        figures.append(draw_mechanics(folder / "figures" / "mechanics.png", arrays))
    return Report(table="\n\n".join(table for table in tables if table), figures=figures, files=files, metrics=metrics)


def _claimed_table(finished: Sequence[FinishedArm]) -> str:
    """Claimed numbers beside the mechanics'; nothing where the mechanics were not run."""
    runs = [arm.run for arm in finished if arm.name == MECHANICS and arm.run is not None and arm.run.metrics]
    if not runs:
        return ""
    rows = [[row.claim, row.claimed, row.measured(runs[0].metrics)] for row in CLAIMED]
    return aligned([["claim", "claimed", "measured"], *rows], text_columns=3)


def _view_table(experiment: WraparoundExperiment, views: Mapping[str, ViewResult]) -> str:
    """One line a view: medians over seeds."""
    context, plan = experiment.model.context, experiment.view_plan
    reach, end = experiment.model.num_layers * context, plan.position_edges[-1]
    wrap, far = ((context // 2, context), (context, 2 * context)), (8 * context, end)
    distances = ((0, plan.near), (context, reach), (reach, 4 * reach), (4 * reach, plan.distance_edges[-1]))
    header = [
        "view", "of", "seeds", *(f"excess {first}-{last}" for first, last in (*wrap, far)),
        *(f"near recall {first}-{last}" for first, last in (*wrap, far)),
        *(f"recall {first}-{last}" for first, last in distances), "streamed - batched", "parameters", "bytes",
    ]  # fmt: skip
    rows = [header]
    for name, result in views.items():
        onset, long = result.onset, result.long
        rows.append([
            name,
            result.view.training,
            str(len(result.seeds)),
            *(_shown([m.excess_between(*span) for m in onset], ".3f") for span in wrap),
            _shown([m.excess_between(*far) for m in long], ".3f"),
            *(_shown([m.near_recall_between(*span) for m in onset], ".2f") for span in wrap),
            _shown([m.near_recall_between(*far) for m in long], ".2f"),
            *(_shown([m.recall_between(*distance) for m in long], ".2f") for distance in distances),
            _shown([metrics.get(names.STREAMED_AGAINST_BATCHED, math.nan) for metrics in result.metrics], ".0e"),
            f"{result.metric(names.TRAINED_PARAMETERS).mean:,.0f}",
            _bytes(result),
        ])  # fmt: skip
    told = "medians over seeds; excess: nats per word above the grammar's own"
    return f"{aligned(rows)}\n{told}; recall by guessing: {experiment.stream.chance_recall:.3f}"


def _bytes(result: ViewResult) -> str:
    grows = result.metric(names.STATE_BYTES_PER_POSITION).mean
    fixed = human_bytes(result.metric(names.STATE_BYTES_FIXED).mean)
    return fixed if not grows else f"{fixed} + {human_bytes(grows)} a position"


def _shown(values: Sequence[float], form: str) -> str:
    found = [value for value in values if not math.isnan(value)]
    return format(statistics.median(found), form) if found else "-"


def _signature_table(
    length: str, symptom: Symptom, observations: Sequence[Observation], verdicts: Sequence[Verdict]
) -> str:
    head = f"{symptom.name} ({symptom.unit}), trained {length} the context"
    observed = [[head, "answer", "seeds above the limit [95 %]", "median", "limit"]]
    observed += [
        [COLUMNS[row.column], row.answer.value, str(row.share), f"{row.median:+.3f}", f"{row.yes_above:g}"]
        for row in observations
    ]
    judged = [["explanation", "result", "because of"]]
    for verdict in verdicts:
        told = [f"not {column}" for column in verdict.against] or [f"open {column}" for column in verdict.open_columns]
        judged.append([verdict.explanation, verdict.result, ", ".join(told)])
    judged += [[explanation, "not asked here", reason] for explanation, reason in NOT_ASKED_HERE.items()]
    return f"{aligned(observed)}\n\n{aligned(judged, text_columns=3)}"


def _signature_metrics(
    length: str, symptom: Symptom, observations: Sequence[Observation], verdicts: Sequence[Verdict]
) -> dict[str, float]:
    """What the ledger reads: every column with its interval, and 1 for an explanation that matches, 0 for one that
    is contradicted, one half for one that is undecided."""
    section = f"{length}_{symptom.name.replace(' ', '_')}"
    found: dict[str, float] = {}
    for row in observations:
        share = row.share
        found |= {
            f"signature_{section}/{row.column}_median": row.median,
            f"signature_{section}/{row.column}_share_of_seeds": share.count / share.seeds,
            f"signature_{section}/{row.column}_share_low": share.low,
            f"signature_{section}/{row.column}_share_high": share.high,
        }
    for verdict in verdicts:
        name = verdict.explanation.replace(" ", "_")
        found[f"explanation_{section}/{name}_matches"] = RESULT_AS_NUMBER[verdict.result]
    return found


def _signature_rows(length: str, symptom: Symptom, observations: Sequence[Observation]) -> list[dict[str, object]]:
    return [
        {
            "trained": length,
            "symptom": symptom.name,
            "column": row.column,
            "measured_as": COLUMNS[row.column],
            "yes_above": row.yes_above,
            "median": row.median,
            "seeds_above": row.share.count,
            "seeds": row.share.seeds,
            "share_low_95": row.share.low,
            "share_high_95": row.share.high,
            "answer": row.answer.value,
            "values": " ".join(f"{seed}:{value:.6g}" for seed, value in sorted(row.values.items())),
            **{f"{name}_expects": str(expected.get(row.column, "")) for name, expected in EXPLANATIONS.items()},
        }
        for row in observations
    ]


def _write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path
