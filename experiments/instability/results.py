"""Finished runs, judged against the reference run of their seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from experiments.harness import metric_names as names
from experiments.harness import tracking
from experiments.harness.estimates import Estimate, estimate, share_of_seeds
from experiments.harness.study import FinishedArm
from experiments.instability.arm import ALARM_STEP, DIVERGED, INNER_LOSS_FALLS, LARGEST_W1, STEP_ABOVE
from experiments.instability.configuration import Arm, InstabilityExperiment
from experiments.instability.judging import first_alarm, lost_step


@dataclass(frozen=True, kw_only=True)
class JudgedRun:
    """losses: text loss by step. lost_at: step, inf for a healthy run. metrics: the run's own, as logged."""

    arm: Arm
    seed: int
    losses: Mapping[int, float]
    lost_at: float
    metrics: Mapping[str, float]

    @property
    def is_lost(self) -> bool:
        return math.isfinite(self.lost_at)

    @property
    def alarms(self) -> dict[str, float]:
        """{kind: first step}"""
        return {
            name.removeprefix(ALARM_STEP): step for name, step in self.metrics.items() if name.startswith(ALARM_STEP)
        }

    @property
    def was_watched(self) -> bool:
        """False for a run whose loss was gone before the monitor had seen a single step."""
        return LARGEST_W1 in self.metrics or STEP_ABOVE in self.metrics

    @property
    def passes_ten(self) -> bool:
        return STEP_ABOVE in self.metrics

    @property
    def recall(self) -> float:
        """Of the last validation; NaN for a run that never came to it."""
        return math.nan if self.metrics.get(DIVERGED) else self.metrics.get(names.RECALL_ALL, math.nan)


def judge(experiment: InstabilityExperiment, finished: Sequence[FinishedArm], uri: str) -> list[JudgedRun]:
    """Every finished run of a seed whose reference run finished too."""
    runs = [
        (arm, arm.run, dict(tracking.read_history(uri, arm.run.run_id, names.TRAIN_TEXT_LOSS)))
        for arm in finished
        if arm.run is not None and arm.outcome is not None and arm.outcome.status == "FINISHED"
    ]
    references = {arm.seed: losses for arm, _, losses in runs if arm.name == experiment.reference}
    return [
        JudgedRun(
            arm=experiment.arm_named(arm.name),
            seed=arm.seed,
            losses=losses,
            lost_at=lost_step(losses, references[arm.seed], experiment.smoothed_steps, experiment.lost_nats),
            metrics=run.metrics,
        )
        for arm, run, losses in runs
        if arm.seed in references
    ]


def of_arm(runs: Sequence[JudgedRun], name: str) -> list[JudgedRun]:
    return sorted((run for run in runs if run.arm.name == name), key=lambda run: run.seed)


def arm_findings(experiment: InstabilityExperiment, runs: Sequence[JudgedRun], name: str) -> dict[str, Estimate]:
    """Of one arm over its seeds; what no run of it has is left out."""
    own, reference = of_arm(runs, name), {run.seed: run for run in of_arm(runs, experiment.reference)}

    def over(of_run: Callable[[JudgedRun], float], chosen: Sequence[JudgedRun] = own) -> Estimate:
        return estimate([value for run in chosen if not math.isnan(value := of_run(run))])

    lost = [run for run in own if run.is_lost]
    found = {
        "lost_share": over(lambda run: float(run.is_lost)),
        "diverged_share": over(lambda run: run.metrics.get(DIVERGED, math.nan)),
        "lost_at_step": over(lambda run: run.lost_at, lost),
        "passes_10_share": over(lambda run: float(run.passes_ten), [run for run in own if run.was_watched]),
        "largest_W1": over(lambda run: run.metrics.get(LARGEST_W1, math.nan)),
        "inner_loss_end_over_start": over(lambda run: run.metrics.get(INNER_LOSS_FALLS, math.nan)),
        "recall": over(lambda run: run.recall),
        "recall_against_reference": over(lambda run: run.recall - reference[run.seed].recall),
        "lead_of_first_alarm_steps": over(_lead, lost),
        "alarms_share": over(lambda run: float(bool(run.alarms))),
    }
    if experiment.arm_named(name).cures is not None:
        ill = {run.seed for run in of_arm(runs, experiment.arm_named(name).cures or "") if run.is_lost}
        cured = share_of_seeds([not run.is_lost for run in own if run.seed in ill])
        share = cured.count / cured.seeds if cured.seeds else math.nan
        found["cured_share"] = Estimate(mean=share, low=cured.low, high=cured.high, seeds=cured.seeds)
    return {what: value for what, value in found.items() if not math.isnan(value.mean)}


def _lead(run: JudgedRun) -> float:
    """Steps by which the first alarm came before the loss was lost; NaN without an alarm."""
    alarm = first_alarm(run.alarms)
    return math.nan if alarm is None else run.lost_at - alarm[1]


def predictor(runs: Sequence[JudgedRun]) -> dict[str, float]:
    """How well each sign tells lost runs from healthy ones: its share of either, among those the monitor saw.

    Signs: largest |W1| above 10, an inner loss that falls, and every kind of alarm that any run raised.
    """
    watched = [run for run in runs if run.was_watched]
    groups = {"lost": [run for run in watched if run.is_lost], "healthy": [run for run in watched if not run.is_lost]}
    found = {f"instability/{name}_runs": float(len(group)) for name, group in groups.items()}
    found["instability/unwatched_runs"] = float(len(runs) - len(watched))
    kinds = sorted({kind for run in watched for kind in run.alarms})
    for name, group in groups.items():
        if not group:
            continue
        share = f"instability/share_of_{name}_runs"
        found[f"{share}_that_pass_10"] = _share([run.passes_ten for run in group])
        known = [run.metrics[INNER_LOSS_FALLS] < 1 for run in group if INNER_LOSS_FALLS in run.metrics]
        if known:
            found[f"{share}_whose_inner_loss_falls"] = _share(known)
        for kind in kinds:
            found[f"{share}_with_alarm_{kind}"] = _share([kind in run.alarms for run in group])
    return found


def _share(answers: Sequence[bool]) -> float:
    return sum(answers) / len(answers)
