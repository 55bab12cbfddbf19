"""One arm: trains under the monitor until the end or until nothing is finite any more; both are results."""

from __future__ import annotations

import math
from collections.abc import Sequence

from experiments.fact_streams.module import FactStreamData, FactStreamModule
from experiments.fact_streams.mounted_models import build_with_ttt_on_top
from experiments.fact_streams.training import train_on_fact_streams
from experiments.harness.memory import start_measuring
from experiments.harness.stopping import DivergedRunError
from experiments.harness.study import ArmWork
from experiments.instability.configuration import InstabilityExperiment
from ttt_core import TTTMonitor
from ttt_core.monitor import MAX_HEALTHY_W1, Alarm, read_rows

ALARM_STEP = "instability/alarm_step_"
DIVERGED, DIVERGED_STEP = "instability/diverged", "instability/diverged_step"
LARGEST_W1, STEP_ABOVE = "instability/largest_W1", "instability/first_step_with_W1_above_10"
INNER_LOSS_FALLS = "instability/inner_loss_last_fifth_over_first_fifth"


def run_instability_arm(work: ArmWork) -> None:
    """Trains one arm. Divergence is what some arms are for: it is logged, and the run finishes."""
    experiment: InstabilityExperiment = work.task.config
    task = work.task
    arm = experiment.arm_named(task.arm)
    plan, bytes_at_start = experiment.training_of(arm), start_measuring()
    lm = build_with_ttt_on_top(experiment.model, experiment.stream, experiment.seed, arm.ttt)
    module = FactStreamModule(lm, experiment.stream, plan)
    data = FactStreamData(experiment.stream, plan, experiment.seed, lambda: module.steps_done)
    monitor = TTTMonitor(task.folder / "monitor")
    own, found = experiment.of_arm(arm.name), {DIVERGED: 0.0}
    try:
        train_on_fact_streams(module, data, own, work, bytes_at_start, monitor, experiment.monitor_every_steps)
    except DivergedRunError as error:
        found = {DIVERGED: 1.0, DIVERGED_STEP: float(module.steps_done)}
        work.logger.set_tag("diverged", str(error))
        print(f"{task.label}: diverged, as it may: {error}", flush=True)
    work.logger.log_metrics(found | watched(monitor), step=module.steps_done)


def watched(monitor: TTTMonitor) -> dict[str, float]:
    """What the monitor saw of a run: the first step of every kind of alarm, the largest |W1|, the inner loss's fall."""
    rows = read_rows(monitor.csv_path)
    found = {f"{ALARM_STEP}{kind}": step for kind, step in alarm_steps(monitor.alarms).items()}
    largest = {int(row["step"] or 0): float(row["W1_max"]) for row in rows if row["W1_max"] is not None}
    finite = {step: value for step, value in largest.items() if math.isfinite(value)}
    if finite:
        found[LARGEST_W1] = max(finite.values())
    above = [step for step, value in largest.items() if not value <= MAX_HEALTHY_W1]  # NaN is above
    if above:
        found[STEP_ABOVE] = float(min(above))
    losses = [float(row["inner_loss"]) for row in rows if row["inner_loss"] is not None]
    fifth = len(losses) // 5
    if fifth and all(math.isfinite(loss) for loss in losses):
        found[INNER_LOSS_FALLS] = sum(losses[-fifth:]) / sum(losses[:fifth])
    return found


def alarm_steps(alarms: Sequence[Alarm]) -> dict[str, float]:
    """{kind: first step}, over all layers."""
    steps: dict[str, float] = {}
    for alarm in alarms:
        steps[alarm.kind] = min(float(alarm.step), steps.get(alarm.kind, math.inf))
    return steps
