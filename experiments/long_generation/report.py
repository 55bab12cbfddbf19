"""The one table of all backbones, what its numbers say in sentences, and the pictures along the streams."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from experiments.harness import metric_names as harness_names
from experiments.harness.csv_file import write_csv
from experiments.harness.estimates import Estimate
from experiments.harness.finished_views import unfinished
from experiments.harness.study import FinishedArm, Report
from experiments.harness.text_table import aligned, human_bytes
from experiments.long_generation import metric_names as speaking_names
from experiments.long_generation.configuration import LongGenerationExperiment
from experiments.long_generation.figures import draw_streams
from experiments.long_generation.measures import curves_along
from experiments.long_generation.results import CLAIMED_HOURS, ArmFindings, alarms_of_ttt, parent_metrics, read_arms
from experiments.spoken import metric_names as spoken_names


def report_long_generation(
    experiment: LongGenerationExperiment, folder: Path, uri: str, finished: Sequence[FinishedArm]
) -> Report:  # fmt: skip
    """What every arm's streams cost, how good they are, and how the same model did when it was trained."""
    arms = read_arms(experiment, finished)
    if not arms:
        return Report(table=unfinished(finished) or "no arm finished: nothing can be said")
    tables = [unfinished(finished), _speaking_table(arms), _trained_table(arms), _real_line(arms)]
    return Report(
        table="\n\n".join(table for table in tables if table),
        figures=draw_streams(folder / "figures", experiment, arms),
        files=[
            _write_arms(folder / "arms.csv", arms),
            _write_curves(folder / "along.csv", arms),
            _write_alarms(folder / "alarms.csv", arms),
        ],
        metrics=parent_metrics(arms),
        notes=[*(sentence(each) for each in arms), *_claimed(arms)],
    )


def sentence(found: ArmFindings) -> str:
    """One arm in words that its numbers choose."""
    share, cost = found.judged.with_alarm, found.cost
    streams = f"{share.seeds} stream{'s' if share.seeds > 1 else ''} of {minutes(found.arm.stream_s)}"
    if not share.count:
        raised = "none raises an alarm"
    else:
        median = found.judged.first_alarm_median_s
        when = f", half of them by {minutes(median)}" if math.isfinite(median) else ""
        first = min(stream.first_alarm_s for stream in found.streams)
        raised = f"{share.count} raise an alarm, the first at {minutes(first)}{when}"
    grows = cost.held_bytes_per_minute
    memory = "memory unknown" if math.isnan(grows) else f"memory grows by {human_bytes(max(0.0, grows))} a minute"
    return f"{found.arm.name}: {streams}: {raised}; {memory}; {cost.real_time_factor:.3f} s of compute a second"


def minutes(seconds: float) -> str:
    """45 -> "45 s", 600 -> "10 min", 7200 -> "2 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.3g} h"


def _claimed(arms: Sequence[ArmFindings]) -> list[str]:
    lines = []
    for backbone in dict.fromkeys(found.arm.backbone for found in arms):
        for hours in CLAIMED_HOURS:
            share = alarms_of_ttt(arms, backbone, hours)
            if share.seeds:
                said = f"{share.count} of {share.seeds} [{share.low:.2f}, {share.high:.2f}]"
                lines.append(f"streams of {backbone} with TTT that raise an alarm within {hours} h: {said}")
    return lines


def _speaking_table(arms: Sequence[ArmFindings]) -> str:
    rows = [
        [
            "arm", "streams", "real-time factor", "last/first quarter", "first audio", "held at the end", "a minute",
            "process a minute", "positions/s", "silent", "with alarm", "alarms/h", "cross-entropy", "late - early",
        ]
    ]  # fmt: skip
    for found in arms:
        cost, own = found.cost, found.judged
        whole = _mean([stream.mean("cross_entropy_nats", 0, stream.duration_s) for stream in found.streams])
        rows.append([
            found.arm.name,
            f"{own.with_alarm.seeds} x {minutes(found.arm.stream_s)}",
            _shown(cost.real_time_factor, ".3f"),
            _shown(cost.last_over_first_quarter, ".2f"),
            _shown(cost.first_audio_ms, ".0f", " ms"),
            human_bytes(cost.held_bytes),
            _bytes(cost.held_bytes_per_minute),
            _bytes(cost.resident_bytes_per_minute),
            _shown(cost.positions_per_second, ".1f"),
            _shown(_mean([stream.mean("silence_share", 0, stream.duration_s) for stream in found.streams]), ".0%"),
            f"{own.with_alarm.count} [{own.with_alarm.low:.2f}, {own.with_alarm.high:.2f}]",
            f"{own.alarms_per_hour:.1f}",
            _shown(whole, ".2f"),
            _change(own.late_minus_early["cross_entropy_nats"]),
        ])  # fmt: skip
    return (
        f"{aligned(rows)}\nreal-time factor: seconds of compute per second of the conversation, of the stream "
        "that spoke alone;\ncross-entropy: nats a symbol (unit; of qwen-tts, text token) "
        "under an n-gram model of real speech; late, early: last and first quarter;\n"
        "silent: share of 20 ms frames, those while the user speaks among them; process: its resident memory"
    )


def _trained_table(arms: Sequence[ArmFindings]) -> str:
    """How the same models did on held-out conversations: by seconds, in which backbones can be compared."""
    sections = (spoken_names.LOSS_BY_TIME, spoken_names.RECALL_BY_SECONDS)
    columns = sorted(
        {name for found in arms for name in found.run.metrics if name.rpartition("/")[0] in sections},
        key=lambda name: (sections.index(name.rpartition("/")[0]), name),
    )
    if not columns:
        return ""
    header = ["arm", "text loss", "recall", *(_column(name) for name in columns)]
    rows = [header]
    seen = set[str]()
    for found in arms:
        trained = found.run.tags.get("trained_run", "")
        if trained in seen:
            continue
        seen.add(trained)
        metrics = found.run.metrics
        wanted = (harness_names.VALIDATION_TEXT_LOSS, harness_names.RECALL_ALL, *columns)
        rows.append([found.arm.name, *(_shown(metrics.get(name, math.nan), ".2f") for name in wanted)])
    chance = {f"{f.run.metrics[harness_names.RECALL_CHANCE]:.2f}" for f in arms
              if harness_names.RECALL_CHANCE in f.run.metrics}  # fmt: skip
    return (
        f"{aligned(rows, 1)}\nheld-out conversations, teacher-forced: text loss in nats a token by seconds of the "
        f"conversation, recall of facts by seconds since their last mention; recall by guessing: {', '.join(chance)}"
    )


def _column(name: str) -> str:
    section, _, bucket = name.rpartition("/")
    first, end = (int(number) for number in bucket.split("_"))
    return f"{'loss' if section == spoken_names.LOSS_BY_TIME else 'recall'} {first}-{end} s"


def _real_line(arms: Sequence[ArmFindings]) -> str:
    by_backbone = {found.arm.backbone: found.real for found in arms}
    parts = [
        f"{name}: {real.control_alarms} alarms in {real.control_hours:.1f} h, set to "
        f"{real.false_alarms_per_hour:g} an hour on {real.calibrated_hours:.1f} h"
        for name, real in by_backbone.items()
    ]
    return "real speech in the same symbols: " + "; ".join(parts)


def _write_arms(path: Path, arms: Sequence[ArmFindings]) -> Path:
    """One row for each arm: what speaking took, how good it was, loss by position and recall by distance as trained."""
    left_out = (f"{speaking_names.ALONG}/", "system/")
    columns = sorted({name for found in arms for name in found.run.metrics if not name.startswith(left_out)})
    return write_csv(
        path,
        ("arm", *columns),
        ((found.arm.name, *(found.run.metrics.get(name, "") for name in columns)) for found in arms),
    )


def _write_curves(path: Path, arms: Sequence[ArmFindings]) -> Path:
    """One row for each arm, bucket and measure: what the figures are drawn from."""
    return write_csv(
        path,
        ("arm", "end_s", "measure", "value"),
        (
            (found.arm.name, second, name.partition("/")[2], value)
            for found in arms
            for second, values in curves_along(found.arm, found.pieces, found.streams).items()
            for name, value in values.items()
        ),
    )


def _write_alarms(path: Path, arms: Sequence[ArmFindings]) -> Path:
    return write_csv(
        path,
        ("arm", "stream", "duration_s", "onset_s", "raised_s", "measure"),
        (
            (found.arm.name, number, stream.duration_s, alarm.onset_s, alarm.raised_s, alarm.measure)
            for found in arms
            for number, stream in enumerate(found.streams)
            for alarm in stream.alarms
        ),
    )


def _shown(value: float, form: str, unit: str = "") -> str:
    return f"{format(value, form)}{unit}" if math.isfinite(value) else "-"


def _change(found: Estimate) -> str:
    return str(found) if math.isfinite(found.mean) else "-"


def _bytes(value: float) -> str:
    return human_bytes(max(0.0, value)) if math.isfinite(value) else "-"


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan
