"""What is made of all views: table, curves, the ledger's metrics, the figure, and a sentence for each suspect."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from experiments.endless.results import ViewResult, read_views
from experiments.gibberish.configuration import SOUND, GibberishExperiment, Suspect
from experiments.gibberish.figures import draw_gibberish
from experiments.gibberish.results import Damage, SuspectFound, damage, find_suspects, old, view_of
from experiments.harness.estimates import Estimate
from experiments.harness.finished_views import unfinished
from experiments.harness.study import FinishedArm, Report
from experiments.harness.text_table import aligned

CALLED: dict[Suspect, str] = {
    "wrap": "the cache's wrap",
    "bf16": "a BF16 state",
    "age": "a state that never forgets",
    "leak": "training that read ahead",
}


def report_gibberish(
    experiment: GibberishExperiment, folder: Path, uri: str, finished: Sequence[FinishedArm]
) -> Report:  # fmt: skip
    """The table of views, and every difference as a metric of the parent run."""
    views = read_views(experiment.views, finished)
    if SOUND not in views:
        return Report(table=unfinished(finished) or f"the view {SOUND!r}, which all are compared with, did not finish")
    suspects = find_suspects(experiment, views)
    against_sound = {name: damage(view, views[SOUND], *old(experiment)) for name, view in views.items()}
    tables = [unfinished(finished), _table(experiment, views, against_sound)]
    notes = [sentence(experiment, found) for found in suspects]
    return Report(
        table="\n\n".join(table for table in tables if table),
        figures=[draw_gibberish(folder / "figures" / "gibberish.png", experiment, views, notes)],
        files=[_write_curves(folder / "curves.csv", views)],
        metrics=parent_metrics(experiment, against_sound, suspects),
        notes=notes,
    )


def parent_metrics(
    experiment: GibberishExperiment, against_sound: Mapping[str, Damage], suspects: Sequence[SuspectFound]
) -> dict[str, float]:
    """`gibberish_VIEW/word_loss_against_sound`, `.../recall_against_sound`; for each suspect `onset_minutes`, and what
    it does `in_company`. Estimates have `_low` and `_high`; an onset that never comes is not logged."""
    found: dict[str, Estimate] = {}
    for name, each in against_sound.items():
        if name != SOUND:
            found[f"gibberish_{name}/word_loss_against_sound"] = each.word_loss
            found[f"gibberish_{name}/recall_against_sound"] = each.recall
    for suspect in suspects:
        if suspect.in_company is not None:
            found[f"gibberish_{suspect.suspect}/word_loss_in_company"] = suspect.in_company.word_loss
            found[f"gibberish_{suspect.suspect}/recall_in_company"] = suspect.in_company.recall
    metrics = {}
    for name, value in found.items():
        metrics[name] = value.mean
        if not math.isnan(value.low):
            metrics |= {f"{name}_low": value.low, f"{name}_high": value.high}
    for suspect in suspects:
        if not math.isnan(suspect.onset_position):
            metrics[f"gibberish_{suspect.suspect}/onset_minutes"] = experiment.minutes(suspect.onset_position)
    return metrics


def sentence(experiment: GibberishExperiment, found: SuspectFound) -> str:
    """What one suspect does, in words that the numbers choose."""
    called = CALLED[found.suspect]
    name = called[0].upper() + called[1:]
    numbers = f"words {found.alone.word_loss} nats, recall {found.alone.recall}"
    if math.isnan(found.alone.word_loss.low):
        return f"{name}: {numbers}; no interval, so no verdict"
    match found.verdict:
        case "breaks":
            at = duration(experiment.minutes(found.onset_position) * 60)
            since = "" if math.isnan(found.onset_position) else f" from {at} on"
            said = f"breaks speech by itself{since}"
        case "harmless":
            said = "is harmless by itself"
        case "open":
            said = "may or may not do harm by itself: the seeds do not tell"
    company = ""
    if found.in_company is not None:
        given_back = found.in_company
        company = f"; among the others it costs {given_back.word_loss} nats, recall {given_back.recall}"
    return f"{name} {said}: {numbers}{company}"


def duration(seconds: float) -> str:
    """0.4 -> "the start", 2.56 -> "2.6 s", 300 -> "5 min"."""
    if seconds == 0:
        return "the start"
    return f"{seconds:.1f} s" if seconds < 60 else f"{seconds / 60:.0f} min"


def _table(
    experiment: GibberishExperiment, views: Mapping[str, ViewResult], against_sound: Mapping[str, Damage]
) -> str:
    first, end = old(experiment)
    rows = [["view", "wrong", "word loss", "recall", "words against sound", "recall against sound", "norm at the end"]]
    for name, result in views.items():
        norm = result.over_seeds(lambda m: m.probes[-1].inner_norm if m.probes else math.nan)
        compared = name != SOUND
        rows.append([
            name,
            _wrong(result),
            f"{result.over_seeds(lambda m: m.streams.word_loss_between(first, end)).mean:.3f}",
            f"{result.over_seeds(lambda m: m.recall_between(first, end)).mean:.3f}",
            str(against_sound[name].word_loss) if compared else "-",
            str(against_sound[name].recall) if compared else "-",
            f"{norm.mean:.1f}",
        ])  # fmt: skip
    seeds = len(next(iter(views.values())).seeds)
    span = f"{experiment.minutes(first):.0f} to {experiment.minutes(end):.0f} minutes"
    trained = experiment.trained_positions
    return "\n".join(
        [
            aligned(rows),
            f"{seeds} seeds, {experiment.streams} streams each; {span} of a stream at {experiment.frame_rate_hz} Hz; "
            f"trained on {trained} positions, as many as the ring holds",
            f"recall of facts {experiment.model.reach} to {trained} positions ago, by guessing "
            f"{experiment.stream.chance_recall:.3f}; no model goes below {experiment.stream.word_entropy_nats:.3f} "
            "nats per word",
        ]
    )


def _wrong(result: ViewResult) -> str:
    view = view_of(result)
    return " + ".join(view.suspects) or f"nothing ({view.age_cure})"


def _write_curves(path: Path, views: Mapping[str, ViewResult]) -> Path:
    """One row per view, seed and bucket, and per probe: what the figure is drawn from."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["view", "seed", "curve", "first_position", "end_position", "value"])
        for name, result in views.items():
            for seed, measures in zip(result.seeds, result.measures, strict=True):
                for first, end in pairwise(measures.streams.position_edges):
                    excess = measures.streams.excess_between(first, end)
                    writer.writerow([name, seed, "word_excess_nats", first, end, excess])
                    writer.writerow([name, seed, "recall", first, end, measures.recall_between(first, end)])
                for probe in measures.probes:
                    writer.writerow([name, seed, "inner_norm", probe.position, probe.position, probe.inner_norm])
    return path
