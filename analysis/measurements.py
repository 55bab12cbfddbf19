"""From the runs that count to one interval for each test."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from analysis.eligibility import DigestsAt, ExperimentRun, LeftOut, eligible_runs, experiment_runs, left_out_of
from analysis.ledger import Claim, ClaimTest, Ledger
from analysis.runs import LoggedRun
from analysis.statistics import Interval, exact_interval, share_interval, t_interval

if TYPE_CHECKING:
    from analysis.store import Store


@dataclass(frozen=True, kw_only=True)
class SeedValue:
    """One seed of a test over arms. against: NaN where the arm is compared with nothing."""

    seed: int
    own: float
    against: float
    run_id: str
    against_run_id: str
    commit: str

    @property
    def value(self) -> float:
        return self.own if math.isnan(self.against) else self.own - self.against


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What one test found at one scale. run_id: of the run it was read off, the newest of several."""

    claim: Claim
    test: ClaimTest
    scale: str
    interval: Interval
    run_id: str
    commit: str
    by_seed: tuple[SeedValue, ...] = ()


def measure(
    ledger: Ledger, store: Store, digests_at: DigestsAt, tell: Callable[[str], None] = lambda line: None
) -> tuple[list[Measurement], list[LeftOut]]:
    """Every test of every claim at every scale that has runs which count, and the runs that do not, with reasons.

    tell: is given a line for each recipe that is read.
    """
    recipes = dict.fromkeys(recipe for claim in ledger.claims for recipe in claim.recipes)
    runs = {recipe: experiment_runs(store.runs(recipe)) for recipe in recipes}
    for recipe, found in runs.items():
        tell(f"{recipe}: {len(found)} runs")
    measured: list[Measurement] = []
    left_out: list[LeftOut] = []
    for claim in ledger.claims:
        eligible: dict[str, list[ExperimentRun]] = {}
        for recipe in claim.recipes:
            eligible[recipe], others = eligible_runs(claim, recipe, runs[recipe], digests_at)
            left_out += others
        for test in claim.tests:
            for scale in dict.fromkeys(run.scale for run in eligible[test.recipe]):
                of_scale = [run for run in eligible[test.recipe] if run.scale == scale]
                found, others = measure_test(claim, test, of_scale)
                left_out += others
                measured += [] if found is None else [found]
    return measured, left_out


def measure_test(
    claim: Claim, test: ClaimTest, runs: Sequence[ExperimentRun]
) -> tuple[Measurement | None, list[LeftOut]]:
    """The test's interval from runs of one scale, newest first, and the runs that could not be used."""
    if test.source == "arms":
        return _over_seeds(claim, test, runs)
    left_out = []
    for place, run in enumerate(runs):
        holder = run.parent
        if test.source == "arm":
            of_arm = run.of_arm(test.arm)
            if not of_arm:
                left_out.append(left_out_of(claim, test.recipe, run, f"its arm {test.arm} is not finished"))
                continue
            holder = of_arm[min(of_arm)]
        elif not run.has_every_arm:
            left_out.append(left_out_of(claim, test.recipe, run, "not every arm was run"))
            continue
        interval, reason = _logged_interval(test, holder, run)
        if interval is None:
            left_out.append(left_out_of(claim, test.recipe, run, reason))
            continue
        speaks = f"run {run.parent.run_id[:8]} of the same scale is newer and speaks"
        left_out += [left_out_of(claim, test.recipe, older, speaks) for older in runs[place + 1 :]]
        return _measurement(claim, test, run.scale, interval, holder), left_out
    return None, left_out


def _logged_interval(test: ClaimTest, holder: LoggedRun, run: ExperimentRun) -> tuple[Interval | None, str]:
    """The interval that a run has logged, or why it has none."""
    metrics = holder.metrics
    if test.metric not in metrics:
        return None, f"it has no metric {test.metric}"
    value = metrics[test.metric]
    seeds = len(run.seeds) if test.source == "experiment" else 1
    if seeds < test.seeds:
        return None, f"it has {seeds} seeds, {test.name} takes {test.seeds}"
    if test.exact:
        low, high = value, value
    elif test.relative_error:
        half = abs(value) * test.relative_error
        low, high = value - half, value + half
    elif all(end in metrics for end in test.ends):
        low, high = (metrics[end] for end in test.ends)
        if test.unit == "share" and low == high and value in (0, 1):
            # Where all seeds agree Student's interval is a point, however few they are; the exact one is not.
            agreeing = share_interval(round(value * seeds), seeds)
            low, high = agreeing.low, agreeing.high
    else:
        return None, f"{test.metric} has no interval (one seed?)"
    interval = Interval(value=value, low=low, high=high, seeds=seeds)
    return (interval, "") if interval.is_known else (None, f"{test.metric} is {value} [{low}, {high}]")


def _over_seeds(
    claim: Claim, test: ClaimTest, runs: Sequence[ExperimentRun]
) -> tuple[Measurement | None, list[LeftOut]]:
    """One value a seed, each from the newest run that has it, all of the newest run's configuration."""
    by_seed: dict[int, SeedValue] = {}
    holders: list[LoggedRun] = []
    left_out: list[LeftOut] = []
    for run in runs:
        reason = ""
        for seed, own in run.of_arm(test.arm).items():
            if seed in by_seed:
                continue
            if holders and _configuration(own) != _configuration(holders[0]):
                reason = f"its {test.arm} is configured otherwise than in the newest run {holders[0].parent_run_id}"
                continue
            value = _seed_value(test, own, run.of_arm(test.against).get(seed) if test.against else None)
            if value is None:
                metrics = f"{test.metric} and {test.minus}" if test.minus else test.metric
                arms = f"{test.arm} and {test.against}" if test.against else test.arm
                reason = f"seed {seed} lacks {metrics} of {arms}"
                continue
            by_seed[seed] = value
            holders.append(own)
        if reason or not run.of_arm(test.arm):
            left_out.append(left_out_of(claim, test.recipe, run, reason or f"its arm {test.arm} was not run"))
    if len(by_seed) < test.seeds:
        few = f"{test.name} takes {test.seeds} seeds, the runs that count have {len(by_seed)}"
        told = {each.run_id for each in left_out}
        left_out += [left_out_of(claim, test.recipe, run, few) for run in runs if run.parent.run_id not in told]
        return None, left_out
    rows = tuple(by_seed[seed] for seed in sorted(by_seed))
    interval = interval_of_seeds(test, [row.value for row in rows])
    return _measurement(claim, test, runs[0].scale, interval, holders[0], rows), left_out


def interval_of_seeds(test: ClaimTest, values: Sequence[float]) -> Interval:
    """Of one value a seed: exact where no draw enters, else the mean with Student's t."""
    return exact_interval(values) if test.exact else t_interval(values)


def _seed_value(test: ClaimTest, own: LoggedRun, other: LoggedRun | None) -> SeedValue | None:
    """None where a metric is missing, or no number."""
    values = [_number(test, own)]
    if test.against:
        values.append(math.nan if other is None else _number(test, other))
    if not all(map(math.isfinite, values)):
        return None
    return SeedValue(
        seed=own.seed, own=values[0], against=values[1] if test.against else math.nan, run_id=own.run_id,
        against_run_id="" if other is None else other.run_id, commit=own.commit,
    )  # fmt: skip


def _number(test: ClaimTest, run: LoggedRun) -> float:
    value = run.metrics.get(test.metric, math.nan)
    return value - run.metrics.get(test.minus, math.nan) if test.minus else value


def _configuration(run: LoggedRun) -> dict[str, str]:
    """Everything that was logged of how it was run, but for the seed."""
    return {name: value for name, value in run.params.items() if name != "seed"}


def _measurement(
    claim: Claim, test: ClaimTest, scale: str, interval: Interval, holder: LoggedRun, rows: tuple[SeedValue, ...] = ()
) -> Measurement:
    run_id = holder.parent_run_id or holder.run_id
    return Measurement(
        claim=claim, test=test, scale=scale, interval=interval, run_id=run_id, commit=holder.commit, by_seed=rows
    )
