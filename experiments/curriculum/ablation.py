"""Straight to the longest conversations, or in stages: both from one short-trained model, on as many tokens."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from experiments.curriculum.chain import ChainExperiment, Link
from experiments.curriculum.metric_names import DIVERGED, FAILED_SHARE, STRAIGHT_MINUS_STAGED
from experiments.curriculum.stages import CONTINUED_ARM, later_stage, with_fields
from experiments.harness import metric_names as names
from experiments.harness.estimates import Estimate, estimate
from experiments.harness.study import FinishedArm, Scale
from experiments.spoken.configuration import DataPlan, SpokenExperiment, TrainingPlan, TrainingStage

SHORT, STAGED, STRAIGHT = "short", "staged", "straight"


@dataclass(frozen=True, kw_only=True)
class AblationPlan:
    """What the scales differ in.

    steps_a_stage: of each of the four lengths; straight takes four times as many of the longest. Every step of either
        reads as many positions, those of the longest conversation: shorter ones come several to a step.
    conversations: of each length. short: what both start from learned on, so that they can read at all.
    """

    seed_count: int
    steps_a_stage: int
    short: TrainingStage
    conversations: int
    validation_conversations: int


PLANS: dict[Scale, AblationPlan] = {
    "smoke": AblationPlan(
        seed_count=1, steps_a_stage=1, conversations=4, validation_conversations=1,
        short=TrainingStage(positions=256, conversations=2, conversations_per_step=2, steps=2),
    ),
    "cpu": AblationPlan(
        seed_count=3, steps_a_stage=3, conversations=24, validation_conversations=2,
        short=TrainingStage(
            positions=128, conversations=4096, conversations_per_step=16, steps=256, early_share=0.9,
            subjects_per_conversation=2,
        ),
    ),
    "gpu": AblationPlan(
        seed_count=3, steps_a_stage=150, conversations=1200, validation_conversations=16,
        short=TrainingStage(positions=1024, conversations=16384, conversations_per_step=32, steps=3000),
    ),
    "full": AblationPlan(
        seed_count=3, steps_a_stage=150, conversations=600, validation_conversations=16,
        short=TrainingStage(positions=1024, conversations=4096, conversations_per_step=8, steps=1000),
    ),
}  # fmt: skip


def straight_against_staged(recipe: str, first: SpokenExperiment) -> ChainExperiment:
    """Arms `short`, and from its end `staged` and `straight`.

    Tokens a step are equal, so steps are too: what differs is the length of a conversation alone, and with it how
    many conversations a step averages over.
    """
    plan = PLANS[first.scale]
    last = later_stage(first, 4, recipe)
    longest = last.data.curriculum[0].positions
    lengths = tuple(longest // 2**halvings for halvings in (3, 2, 1, 0))
    spec = dataclasses.replace(
        last.data.spec, conversations=plan.conversations, validation_conversations=plan.validation_conversations
    )

    def reading(*curriculum: TrainingStage) -> DataPlan:
        return DataPlan(spec=spec, curriculum=curriculum)

    def stage(positions: int, steps: int) -> TrainingStage:
        return TrainingStage(
            positions=positions, conversations=plan.conversations, conversations_per_step=longest // positions,
            steps=steps,
        )  # fmt: skip

    # Everything is trained from the start, in both: what is compared is the length alone.
    rate = last.training.groups[0].learning_rate / first.training.ttt_learning_rate
    longer = dataclasses.replace(
        last.training, groups=(), learning_rate=rate * first.training.learning_rate,
        ttt_learning_rate=rate * first.training.ttt_learning_rate,
    )  # fmt: skip
    short = dataclasses.replace(first.training, warmup_steps=min(first.training.warmup_steps, plan.short.steps))

    def experiment(data: DataPlan, training: TrainingPlan) -> SpokenExperiment:
        evaluation = dataclasses.replace(
            last.evaluation, validate_every_steps=data.steps,
            checkpoint_every_steps=max(1, data.steps // 8), monitor_every_steps=max(1, data.steps // 4),
        )  # fmt: skip
        arms = (first.arm(CONTINUED_ARM),)
        return dataclasses.replace(last, recipe=recipe, data=data, training=training, evaluation=evaluation, arms=arms)

    staged = reading(*(stage(positions, plan.steps_a_stage) for positions in lengths))
    straight = reading(stage(longest, len(lengths) * plan.steps_a_stage))
    # The short-trained model is measured on the long conversations too, in segments.
    short_training = with_fields(short, segment_positions=longer.segment_positions, gradient_checkpointing=False)
    return ChainExperiment(
        recipe=recipe, scale=first.scale, seed=first.seed, seed_count=plan.seed_count,
        links=(
            Link(name=SHORT, experiment=experiment(reading(plan.short), short_training)),
            Link(name=STAGED, experiment=experiment(staged, longer), starts_from=SHORT, survives_divergence=True),
            Link(name=STRAIGHT, experiment=experiment(straight, longer), starts_from=SHORT, survives_divergence=True),
        ),
    )  # fmt: skip


def ablation_metrics(
    config: ChainExperiment, finished: Sequence[FinishedArm]
) -> tuple[dict[str, float], tuple[str, ...]]:
    """The differences over seeds, as logged, and as lines for people.

    A run that diverged knows nothing: its text loss counts as that of guessing every token, the log of the vocabulary.
    """
    runs = {
        (arm.name, arm.seed): arm.run.metrics
        for arm in finished
        if arm.run is not None and arm.outcome is not None and arm.outcome.status == "FINISHED"
    }
    seeds = [seed for seed in config.seeds if {(STAGED, seed), (STRAIGHT, seed)} <= runs.keys()]
    if not seeds:
        return {}, ()
    guessing = math.log(config.links[0].experiment.data.spec.text_vocab_size)
    text_loss = [_loss(runs[STRAIGHT, seed], guessing) - _loss(runs[STAGED, seed], guessing) for seed in seeds]
    recall = [_recall(runs[STRAIGHT, seed]) - _recall(runs[STAGED, seed]) for seed in seeds]
    found = {
        f"{STRAIGHT_MINUS_STAGED}text_loss_nats": estimate(text_loss),
        f"{STRAIGHT_MINUS_STAGED}recall": estimate(recall),
    }
    failed = {arm: [seed for seed in seeds if runs[arm, seed].get(DIVERGED)] for arm in (STAGED, STRAIGHT)}
    metrics = {f"{FAILED_SHARE}{arm}": len(lost) / len(seeds) for arm, lost in failed.items()}
    for name, value in found.items():
        metrics |= _logged(name, value)
    lines = [f"{name.rpartition('/')[2]}: {value}" for name, value in found.items()]
    lines += [f"{arm} diverged with {len(lost)} of {len(seeds)} seeds" for arm, lost in failed.items()]
    return metrics, tuple(lines)


def _loss(metrics: Mapping[str, float], guessing: float) -> float:
    return guessing if metrics.get(DIVERGED) else metrics[names.VALIDATION_TEXT_LOSS]


def _recall(metrics: Mapping[str, float]) -> float:
    """Share of facts recalled; guessing for a run that diverged."""
    return metrics[names.RECALL_CHANCE] if metrics.get(DIVERGED) else metrics[names.RECALL_ALL]


def _logged(name: str, value: Estimate) -> dict[str, float]:
    if math.isnan(value.mean):
        return {}
    bounds = {} if math.isnan(value.low) else {f"{name}_low": value.low, f"{name}_high": value.high}
    return {name: value.mean, **bounds}
