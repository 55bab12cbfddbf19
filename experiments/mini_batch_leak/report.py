"""Table, CSV, metrics of the ledger, figure, and a sentence for every arm."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.harness.estimates import Estimate
from experiments.harness.study import FinishedArm, Report
from experiments.harness.text_table import aligned
from experiments.mini_batch_leak.arm import WRITTEN_FILE
from experiments.mini_batch_leak.configuration import MiniBatchLeakExperiment
from experiments.mini_batch_leak.figures import draw_losses
from experiments.mini_batch_leak.results import ArmResult, findings, parent_metrics, read_arms

TOLERATED_NATS = 0.05
"""What streaming may cost above the form of training and still count as the same model."""

Found = Mapping[str, Mapping[str, Estimate]]


def report_mini_batch_leak(
    experiment: MiniBatchLeakExperiment, folder: Path, uri: str, finished: Sequence[FinishedArm]
) -> Report:  # fmt: skip
    """The table of arms, and every estimate as a metric of the parent run."""
    arms = read_arms(experiment, finished, uri)
    failures = _failures(finished)
    if not arms:
        return Report(table=failures or "no arm finished")
    found = findings(arms)
    table = _table(experiment, arms, found)
    return Report(
        table=f"{failures}\n\n{table}" if failures else table,
        figures=[draw_losses(folder / "figures", experiment, arms, found)],
        files=[_write_csv(folder / "findings.csv", found)],
        metrics=parent_metrics(found),
        notes=[sentence(name, own) for name, own in found.items()]
        + [f"what the arms write: {folder}/*/{WRITTEN_FILE}"],
    )


def sentence(name: str, own: Mapping[str, Estimate]) -> str:
    """What decoding does to an arm, in a sentence; whether that is within what is tolerated."""
    gap = own["streamed_minus_parallel_nats"]
    parallel, streamed = own["parallel_loss_nats"], own["streamed_loss_nats"]
    change = f"{parallel.mean:.3f} nats all at once, {streamed.mean:.3f} one token a call: {gap}"
    writes = f"{own['written_whole_turns'].mean:.0%} of what it writes are turns somebody says"
    if math.isnan(gap.low):
        verdict = "one seed, so nothing is said of it"
    elif gap.low > TOLERATED_NATS:
        verdict = f"what it learned does not decode (above {TOLERATED_NATS})"
    elif gap.high < TOLERATED_NATS:
        verdict = f"it decodes as it was trained (within {TOLERATED_NATS})"
    else:
        verdict = f"whether it decodes as it was trained is open (the interval holds {TOLERATED_NATS})"
    return f"{name}: {change}; {verdict}; {writes}"


def _failures(finished: Sequence[FinishedArm]) -> str:
    return "\n".join(
        f"{arm.task.label}: {'not run' if arm.outcome is None else arm.outcome.status.lower()}"
        for arm in finished
        if arm.outcome is None or arm.outcome.status != "FINISHED"
    )


_COLUMNS = {
    "training loss": ("training_loss_at_end_nats", ".3f"),
    "held-out": ("parallel_loss_nats", ".3f"),
    "streamed": ("streamed_loss_nats", ".3f"),
    "logits apart": ("largest_logit_difference", ".1e"),
    "from causal form": ("largest_logit_difference_to_causal_form", ".1e"),
    "known words": ("written_known_words", ".1%"),
    "whole turns": ("written_whole_turns", ".1%"),
    "distinct 4-grams": ("written_distinct_4grams", ".2f"),
}


def _table(experiment: MiniBatchLeakExperiment, arms: Mapping[str, ArmResult], found: Found) -> str:
    rows = [["arm", "streamed - held-out", *_COLUMNS]]
    for name, own in found.items():
        cells = [format(own[what].mean, form) for what, form in _COLUMNS.values()]
        rows.append([name, str(own["streamed_minus_parallel_nats"]), *cells])
    return (
        f"{aligned(rows)}\n"
        f"seeds: {len(next(iter(arms.values())).runs)}; nats per token; training loss: last tenth of "
        f"{experiment.training.steps} steps; held-out: all at once, in the form of training; streamed: one token a "
        "call; logits apart: the largest difference between these two, and between streamed and the causal form; "
        "words, turns and 4-grams are of continuations drawn token by token"
    )


def _write_csv(path: Path, found: Found) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["arm", "what", "mean", "low_95", "high_95", "seeds"])
        for arm, own in found.items():
            writer.writerows([arm, what, v.mean, v.low, v.high, v.seeds] for what, v in own.items())
    return path
