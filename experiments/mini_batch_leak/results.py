"""Finished arms of all seeds, and what each measured as estimates over them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from experiments.harness import metric_names as names
from experiments.harness import tracking
from experiments.harness.estimates import Estimate, estimate
from experiments.harness.study import FinishedArm
from experiments.mini_batch_leak.arm import (
    LOGIT_DIFFERENCE,
    LOGIT_DIFFERENCE_TO_CAUSAL,
    PARALLEL,
    STREAMED,
    WRITTEN,
)
from experiments.mini_batch_leak.configuration import Form, Layer, MiniBatchLeakExperiment, arm_name

END_SHARE = 0.1
"""The training loss at the end is the mean over this share of the steps, the last ones."""


@dataclass(frozen=True, kw_only=True)
class SeedResult:
    """One run. metrics: as logged. losses: text loss of the training batches by step."""

    seed: int
    metrics: Mapping[str, float]
    losses: Mapping[int, float]

    @property
    def gap(self) -> float:
        """Nats that the same text costs more one token a call."""
        return self.metrics[STREAMED] - self.metrics[PARALLEL]

    @property
    def loss_at_end(self) -> float:
        last = [loss for _, loss in sorted(self.losses.items())][-max(1, round(END_SHARE * len(self.losses))) :]
        return sum(last) / len(last)


@dataclass(frozen=True, kw_only=True)
class ArmResult:
    """One arm under every seed, in the seeds' order."""

    layer: Layer
    form: Form
    runs: tuple[SeedResult, ...]

    def over_seeds(self, of_run: Callable[[SeedResult], float]) -> Estimate:
        return estimate([of_run(run) for run in self.runs])


def read_arms(
    experiment: MiniBatchLeakExperiment, finished: Sequence[FinishedArm], uri: str
) -> dict[str, ArmResult]:  # fmt: skip
    """Arms in the configuration's order, all under the same seeds: those in which every arm that was begun finished."""
    found: dict[str, dict[int, SeedResult]] = {}
    for arm in finished:
        own = found.setdefault(arm.name, {})
        if arm.run is not None and arm.outcome is not None and arm.outcome.status == "FINISHED":
            losses = dict(tracking.read_history(uri, arm.run.run_id, names.TRAIN_TEXT_LOSS))
            own[arm.seed] = SeedResult(seed=arm.seed, metrics=arm.run.metrics, losses=losses)
    common = sorted(set.intersection(*(set(own) for own in found.values()))) if found else []
    if not common:
        return {}
    arms = {}
    for name in experiment.arm_names:
        if name in found:
            layer, form = experiment.arm_named(name)
            arms[name] = ArmResult(layer=layer, form=form, runs=tuple(found[name][seed] for seed in common))
    return arms


def findings(arms: Mapping[str, ArmResult]) -> dict[str, dict[str, Estimate]]:
    """{arm: {what: estimate}}: the numbers that the table, the CSV and the ledger read."""
    return {name: _of_one_arm(arm) | _against_causal(arm, arms) for name, arm in arms.items()}


def _of_one_arm(arm: ArmResult) -> dict[str, Estimate]:
    logged = {
        "parallel_loss_nats": PARALLEL,
        "streamed_loss_nats": STREAMED,
        "largest_logit_difference": LOGIT_DIFFERENCE,
        "largest_logit_difference_to_causal_form": LOGIT_DIFFERENCE_TO_CAUSAL,
        **{f"written_{what}": f"{WRITTEN}{what}" for what in ("known_words", "whole_turns", "distinct_4grams")},
    }
    found = {what: arm.over_seeds(lambda run, m=metric: run.metrics[m]) for what, metric in logged.items()}
    found["streamed_minus_parallel_nats"] = arm.over_seeds(lambda run: run.gap)
    found["training_loss_at_end_nats"] = arm.over_seeds(lambda run: run.loss_at_end)
    return found


def _against_causal(arm: ArmResult, arms: Mapping[str, ArmResult]) -> dict[str, Estimate]:
    """A leaky arm's losses minus those of the causal arm of the same layer, seed by seed."""
    control = arms.get(arm_name(arm.layer, "causal"))
    if arm.form == "causal" or control is None:
        return {}
    pairs = list(zip(arm.runs, control.runs, strict=True))
    assert all(own.seed == other.seed for own, other in pairs)
    return {
        f"{what}_against_causal_nats": estimate([own.metrics[metric] - other.metrics[metric] for own, other in pairs])
        for what, metric in (("parallel", PARALLEL), ("streamed", STREAMED))
    }


def parent_metrics(found: Mapping[str, Mapping[str, Estimate]]) -> dict[str, float]:
    """`leak_ARM/WHAT`, with `_low` and `_high` of its interval where there are several seeds."""
    metrics = {}
    for arm, own in found.items():
        for what, value in own.items():
            metrics[f"leak_{arm}/{what}"] = value.mean
            if not math.isnan(value.low):
                metrics |= {f"leak_{arm}/{what}_low": value.low, f"leak_{arm}/{what}_high": value.high}
    return metrics
