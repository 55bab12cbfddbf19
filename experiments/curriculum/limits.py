"""Whether a run went well enough to go on from: NaN, inner weights and inner loss, each against a limit with a name."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace

from experiments.harness import metric_names as names
from experiments.harness import tracking
from experiments.harness.tracking import LoggedRun
from ttt_core.monitor import MAX_HEALTHY_W1

Curve = Sequence[tuple[int, float]]
MONITORED = re.compile(r"ttt/(layer\d+)/(W1_max|inner_loss)")
STEPS_OF_A_TREND = 5
"""Rows of the monitor at either end whose mean is compared."""
INFINITE = 1e300
"""A database store of MLflow keeps infinity as the largest number it can hold, 1.8e308."""


@dataclass(frozen=True, kw_only=True)
class StartLimits:
    """What a run may have shown at most, to be gone on from.

    largest_W1: of any entry of the inner weights W1 at any step. 29 % of the healthy runs of `instability` passed 10
        too, and no lost one did: where loss and recall are as wanted, raise it.
    inner_loss_growth: times by which the inner loss at the end may exceed that at the start. That it should fall, as
        the notes ask, refuses every healthy run: all 21 of `instability` ended at 1.4 to 2.1 times their start, since
        the outer weights learn to give the inner model a harder task. Below 1 is that stricter rule.
    """

    largest_W1: float = MAX_HEALTHY_W1  # noqa: N815  # as the monitor's columns are called
    inner_loss_growth: float = 3.0

    @classmethod
    def given(cls, assignments: Iterable[str]) -> StartLimits:
        """From `name=number`, as on the command line.

        Raises:
            ValueError: no such limit (the message lists those there are), or no number above 0.
        """
        limits = cls()
        known = [field.name for field in fields(cls)]
        for assignment in assignments:
            name, _, number = (part.strip() for part in assignment.partition("="))
            if name not in known:
                raise ValueError(
                    f"--start-limit takes NAME=NUMBER with a name among {', '.join(known)}; {assignment!r}"
                )
            try:
                value = float(number)
            except ValueError:
                value = math.nan
            if not value > 0:
                raise ValueError(f"--start-limit {name} takes a number above 0; it was given {number!r}")
            limits = replace(limits, **{name: value})
        return limits


def require_healthy(uri: str, run: LoggedRun, limits: StartLimits) -> None:
    """Refuses a run that diverged.

    Raises:
        ValueError: which limit it passed, where, and what to try.
    """
    faults = [*_loss_faults(uri, run), *_monitor_faults(uri, run, limits)]
    if faults:
        raise ValueError(f"run {run.run_id} ({run.tags.get('mlflow.runName', '?')}) is not gone on from: {faults[0]}")


def _loss_faults(uri: str, run: LoggedRun) -> Iterable[str]:
    if run.status != "FINISHED":
        why = run.tags.get("end_message") or "no message was left"
        yield f"it is {run.status}, not FINISHED: {why}. Finish it with --resume, or train the stage again"
        return
    losses = tracking.read_history(uri, run.run_id, names.VALIDATION_TEXT_LOSS)
    if not losses:
        yield f"it logged no {names.VALIDATION_TEXT_LOSS}, so nobody knows how well it learned; train the stage again"
    elif not all(_is_finite(loss) for _, loss in losses):
        yield "its validation loss became NaN or infinite; lower its learning rates, or its base_lr, and train it again"
    elif losses[-1][1] > losses[0][1]:
        yield (
            f"its validation loss rose from {losses[0][1]:.3f} to {losses[-1][1]:.3f} nats per token; lower its "
            "learning rates and train it again"
        )


def _monitor_faults(uri: str, run: LoggedRun, limits: StartLimits) -> Iterable[str]:
    for name in sorted(run.metrics):
        found = MONITORED.fullmatch(name)
        if found is None:
            continue
        layer, what = found.groups()
        curve = tracking.read_history(uri, run.run_id, name)
        if not all(_is_finite(value) for _, value in curve):
            yield f"{what} of {layer} became NaN or infinite; lower base_lr or ttt_learning_rate and train it again"
        elif what == "W1_max":
            step, largest = max(curve, key=lambda row: row[1])
            if largest > limits.largest_W1:
                yield (
                    f"the largest |W1| was {largest:.3g} in {layer} at step {step}, above the limit of "
                    f"{limits.largest_W1:g}. Healthy runs pass 10 too (docs/troubleshooting.md): where its loss and "
                    f"recall are as wanted, go on with --start-limit largest_W1={math.ceil(largest)}; else lower "
                    "base_lr or ttt_learning_rate and train it again"
                )
        elif (growth := _growth(curve)) > limits.inner_loss_growth:
            yield (
                f"the inner loss of {layer} ended at {growth:.2f} times its start, above the limit of "
                f"{limits.inner_loss_growth:g} (healthy runs: 1.4 to 2.1). Where its loss and recall are as wanted, "
                f"go on with --start-limit inner_loss_growth={math.ceil(growth)}; else lower ttt_learning_rate and "
                "train it again"
            )


def _growth(curve: Curve) -> float:
    """Mean of the last rows over that of the first ones."""
    rows = max(1, min(STEPS_OF_A_TREND, len(curve) // 2))
    values = [value for _, value in curve]
    first, last = sum(values[:rows]), sum(values[-rows:])
    return last / first if first > 0 else math.inf


def _is_finite(value: float) -> bool:
    return abs(value) < INFINITE  # NaN is below nothing
