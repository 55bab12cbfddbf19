"""What is made of all arms: a table for each part, CSVs of every curve, figures, and sentences computed from them."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from experiments.drift import metric_names as names
from experiments.drift.claimed import claim_metrics
from experiments.drift.configuration import CLAIMED_UPDATES, DECAY_SUFFIX, DriftExperiment
from experiments.drift.curves import GAPS
from experiments.drift.figures import draw_all
from experiments.drift.results import (
    ModelResult,
    StateResult,
    difference,
    first_position_over,
    read_models,
    read_states,
    word_loss_differences,
)
from experiments.harness.estimates import Estimate, estimate
from experiments.harness.finished_views import unfinished
from experiments.harness.study import FinishedArm, Report
from experiments.harness.text_table import aligned
from ttt_core.precision import POLICIES


def report_drift(experiment: DriftExperiment, folder: Path, uri: str, finished: Sequence[FinishedArm]) -> Report:
    """Tables, files and metrics of whatever finished."""
    states, models = read_states(experiment, finished), read_models(experiment, finished)
    tables, files, notes = [unfinished(finished)], list[Path](), list[str]()
    if states:
        tables.append(_state_table(states))
        files.append(_write_csv(folder / "state_settings.csv", [_setting_row(result) for result in states]))
        files.append(_write_csv(folder / "state_curves.csv", _curve_rows(states)))
        notes += _regime(states)
        notes += cost_sentences(claim_metrics(experiment, states, {}))
    if models:
        tables.append(_model_table(experiment, models))
        files.append(_write_csv(folder / "model_by_position.csv", _position_rows(experiment, models)))
        files.append(_write_csv(folder / "model_recall_by_distance.csv", _distance_rows(experiment, models)))
        notes += _cliff_sentences(experiment, models)
    return Report(
        table="\n\n".join(table for table in tables if table),
        figures=draw_all(folder / "figures", experiment, states, models),
        files=files,
        metrics=claim_metrics(experiment, states, models),
        notes=notes,
    )


def _state_table(states: Sequence[StateResult]) -> str:
    """One line for each arm and treatment: the last kind of vectors (speech) at the default step size."""
    kind = states[-1].kind
    rows = [[
        f"state, {kind}, default step", "treatment", "streams", "updates", f"error at {CLAIMED_UPDATES}", "at the end",
        "of the output", "exponent", "late exponent", "lost",
        *(f"loss +{gap:.0%} at" for gap in GAPS), "narrow products",
    ]]  # fmt: skip
    for result in states:
        if result.kind != kind or result.step_factor != 1.0:
            continue
        rows.append([
            f"{result.arm.inner_model} b{result.arm.mini_batch_size}", result.treatment,
            str(sum(len(curves.state_error) for curves in result.curves)), f"{result.updates[-1]:,.0f}",
            _number(result.at(names.STATE_ERROR, CLAIMED_UPDATES).mean, ".1e"),
            _number(result.at_the_end(names.STATE_ERROR).mean, ".1e"),
            _number(result.at_the_end(names.OUTPUT_ERROR).mean, ".1e"),
            _interval(result.exponent, ".2f"), _interval(result.late_exponent, ".2f"),
            _number(result.at_the_end(names.LOST_SHARE).mean, ".1%"),
            *(_first(result, gap) for gap in GAPS), f"{result.costs[names.NARROW_INNER_PRODUCTS]:.0f}",
        ])  # fmt: skip
    return f"{aligned(rows)}\nloss +1 % at: median over streams of the first update; how many of them ever are"


def _first(result: StateResult, gap: float) -> str:
    median, ever, streams = result.first_gap(gap)
    return f"{'never' if math.isinf(median) else f'{median:,.0f}'} ({ever}/{streams})"


def _number(value: float, form: str) -> str:
    return "-" if math.isnan(value) else format(value, form)


def _interval(found: Estimate, form: str) -> str:
    if math.isnan(found.mean):
        return "-"
    return f"{found.mean:{form}}" + ("" if math.isnan(found.low) else f" [{found.low:{form}}, {found.high:{form}}]")


def _model_table(experiment: DriftExperiment, models: dict[str, ModelResult]) -> str:
    """One line a treatment: word loss at the end, and what differs from its reference."""
    part = experiment.model_part
    edges, last = part.position_edges, part.position_edges[-2:]
    rows = [[
        "trained model", "against", "seeds", f"word loss {last[0]}-{last[1]}", "difference", "largest difference",
        "over 0.01 nats from", "over 0.05 from", "near recall there", "difference",
        f"recall of {part.far[0]}-{part.far[1]} back", "difference",
    ]]  # fmt: skip
    for treatment, result in models.items():
        differences = word_loss_differences(models, treatment, edges)
        measures = list(result.by_seed.values())
        rows.append([
            treatment, result.against, str(len(measures)),
            f"{estimate([each.word_loss_between(*last) for each in measures]).mean:.4f}",
            _interval(differences[-1][1], "+.4f"),
            f"{max(found.mean for _, found in differences):+.4f}",
            *(_place(first_position_over(differences, nats)) for nats in (0.01, 0.05)),
            _number(estimate([each.near_recall_between(*last) for each in measures]).mean, ".3f"),
            _interval(difference(models, treatment, lambda each: each.near_recall_between(*last)), "+.3f"),
            _number(estimate([each.recall_between(*part.far) for each in measures]).mean, ".3f"),
            _interval(difference(models, treatment, lambda each: each.recall_between(*part.far)), "+.3f"),
        ])  # fmt: skip
    entropy = part.stream.word_entropy_nats
    return (
        f"{aligned(rows)}\nnats per word, {entropy:.4f} at best; recall by guessing {part.stream.chance_recall:.3f}; "
        f"update {CLAIMED_UPDATES} is position {part.claimed_position}"
    )


def _place(position: float) -> str:
    return "never" if math.isnan(position) else f"{position:,.0f}"


def _regime(states: Sequence[StateResult]) -> list[str]:
    """For every treatment: where, and how soon, rounding costs the inner loss 5 %."""
    lines: list[str] = []
    for treatment in dict.fromkeys(result.treatment for result in states):
        own = [result for result in states if result.treatment == treatment]
        reached = {result.setting: result.first_gap(0.05)[0] for result in own}
        hit = sorted(((update, name) for name, update in reached.items() if math.isfinite(update)))
        early = [name for update, name in hit if update <= CLAIMED_UPDATES]
        if all(result.at_the_end(names.STATE_ERROR).mean == 0 for result in own):
            continue  # a reference
        line = f"{treatment}: inner loss 5 % above its reference's in {len(hit)} of {len(own)} settings"
        if hit:
            line += f", {len(early)} of them by update {CLAIMED_UPDATES}; first {hit[0][1]} at {hit[0][0]:,.0f}"
        lines.append(line)
    return lines


def cost_sentences(metrics: Mapping[str, float]) -> list[str]:
    """For every policy that rounds: what it costs the inner loss at most, and its bytes and seconds beside FP32's."""
    lines: list[str] = []
    for policy in POLICIES:
        gap = metrics.get(f"C18/{policy}_inner_loss_gap_at_the_end_largest")
        own_bytes = metrics.get(f"C18/{policy}_state_bytes_per_stream_over_fp32")
        seconds = metrics.get(f"C18/{policy}_seconds_per_update_over_fp32")
        if policy in ("fp64", "fp32") or gap is None or own_bytes is None or seconds is None:
            continue
        lines.append(
            f"{policy}: inner loss at most {gap:.2%} above FP64's at the end of any setting, for {own_bytes:.2f} times "
            f"the bytes of FP32 and {seconds:.2f} times its CPU time an update"
        )
    return lines


def _cliff_sentences(experiment: DriftExperiment, models: dict[str, ModelResult]) -> list[str]:
    metrics = claim_metrics(experiment, [], models)
    lines: list[str] = []
    for treatment in ("bf16", f"bf16{DECAY_SUFFIX}"):
        name = f"C16/{treatment}_rise_at_claimed_updates_nats"
        if f"{name}_low" in metrics:
            low, high = metrics[f"{name}_low"], metrics[f"{name}_high"]
            lines.append(
                f"trained model, {treatment} against its reference: from the octave before update {CLAIMED_UPDATES} to "
                f"the octave after it the word loss rises by {metrics[name]:+.4f} nats [{low:+.4f}, {high:+.4f}]"
            )
    return lines


def _setting_row(result: StateResult) -> dict[str, object]:
    exponent, late = result.exponent, result.late_exponent
    end = {measure: result.at_the_end(measure) for measure in names.STATE_MEASURES}
    row: dict[str, object] = {
        "inner_model": result.arm.inner_model, "mini_batch_size": result.arm.mini_batch_size, "vectors": result.kind,
        "step_factor": result.step_factor, "treatment": result.treatment,
        "streams": sum(len(curves.state_error) for curves in result.curves), "updates": int(result.updates[-1]),
        "exponent": exponent.mean, "exponent_low": exponent.low, "exponent_high": exponent.high,
        "late_exponent": late.mean, "late_exponent_low": late.low, "late_exponent_high": late.high,
    }  # fmt: skip
    for measure, found in end.items():
        row |= {f"{measure}_at_the_end": found.mean, f"{measure}_low": found.low, f"{measure}_high": found.high}
    for gap in GAPS:
        median, ever, _ = result.first_gap(gap)
        row |= {f"first_update_over_{gap:g}": "" if math.isinf(median) else median, f"streams_over_{gap:g}": ever}
    return row | {name.split("/")[-1]: value for name, value in result.costs.items()}


def _curve_rows(states: Sequence[StateResult]) -> list[dict[str, object]]:
    """By updates and by tokens, every measure with its interval over streams."""
    rows: list[dict[str, object]] = []
    for result in states:
        for updates in result.updates.astype(int).tolist():
            row: dict[str, object] = {
                "setting": result.setting, "treatment": result.treatment, "updates": updates,
                "tokens": updates * result.arm.mini_batch_size,
            }  # fmt: skip
            for measure in names.STATE_MEASURES:
                found = result.at(measure, updates)
                row |= {measure: found.mean, f"{measure}_low": found.low, f"{measure}_high": found.high}
            rows.append(row)
    return rows


def _position_rows(experiment: DriftExperiment, models: dict[str, ModelResult]) -> list[dict[str, object]]:
    part, rows = experiment.model_part, list[dict[str, object]]()
    for treatment, result in models.items():
        for bucket, found in word_loss_differences(models, treatment, part.position_edges):
            measures = list(result.by_seed.values())
            near = difference(models, treatment, lambda each, bucket=bucket: each.near_recall_between(*bucket))
            rows.append({
                "treatment": treatment, "against": result.against, "first_position": bucket[0], "end": bucket[1],
                "first_update": bucket[0] // part.ttt.mini_batch_size,
                "word_loss": estimate([each.word_loss_between(*bucket) for each in measures]).mean,
                "difference": found.mean, "difference_low": found.low, "difference_high": found.high,
                "near_recall": estimate([each.near_recall_between(*bucket) for each in measures]).mean,
                "near_recall_difference": near.mean, "near_recall_difference_low": near.low,
                "near_recall_difference_high": near.high,
            })  # fmt: skip
    return rows


def _distance_rows(experiment: DriftExperiment, models: dict[str, ModelResult]) -> list[dict[str, object]]:
    edges, rows = experiment.model_part.distance_edges, list[dict[str, object]]()
    for treatment, result in models.items():
        for bucket in pairwise(edges):
            found = difference(models, treatment, lambda each, bucket=bucket: each.recall_between(*bucket))
            rows.append({
                "treatment": treatment, "against": result.against, "first_distance": bucket[0], "end": bucket[1],
                "recall": estimate([each.recall_between(*bucket) for each in result.by_seed.values()]).mean,
                "difference": found.mean, "difference_low": found.low, "difference_high": found.high,
            })  # fmt: skip
    return rows


def _write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path
