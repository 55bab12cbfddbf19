"""Reads long streams with a trained model, teacher-forced, and again with a memory that starts anew."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from experiments.data.dataset import ConversationSet
from experiments.harness import metric_names as names
from experiments.harness.buckets import BucketedMean
from experiments.harness.estimates import estimate
from experiments.harness.memory import device, forget_peak, peak_bytes, start_measuring
from experiments.spoken.backbone import Loader
from experiments.spoken.evaluation import ConversationScores
from experiments.spoken.module import SpokenModule
from experiments.validation import metric_names as own
from experiments.validation.plan import ValidationPlan

SAMPLES = (1, 4)


@torch.no_grad()
def along_streams(
    module: SpokenModule, loader: Loader, streams: ConversationSet, plan: ValidationPlan, *, has_ttt: bool
) -> dict[str, float]:
    """Loss, perplexity and recall in bins, what the memory gives in each, and how fast streams are read.

    has_ttt: the control with a fresh memory is read too.
    """
    # A stream a step: its bins are paired with the control's.
    module.evaluation = replace(module.evaluation, position_edges=plan.edges, distance_edges=plan.edges)
    indices = streams.split_indices("validation")
    carried, seconds, positions = _scores(module, loader, streams, indices, None)
    losses = [one.loss for one in carried]
    measured = {
        **_means(names.LOSS_BY_POSITION, losses),
        **_means(names.RECALL_BY_DISTANCE, [s.recall for s in carried]),
    }
    for name, loss in _means(own.PERPLEXITY_BY_POSITION, losses).items():
        measured[name] = math.exp(min(loss, 700.0))
    in_order = [measured[name] for name in sorted(measured) if name.startswith(f"{own.PERPLEXITY_BY_POSITION}/")]
    if len(in_order) == len(plan.edges) - 1:
        measured[own.PERPLEXITY_RATIO] = in_order[-1] / in_order[0]
    facts = sum(one.facts for one in carried)
    measured |= {
        names.VALIDATION_TEXT_LOSS: sum(s.text_loss_sum for s in carried) / sum(s.tokens for s in carried),
        names.RECALL_CHANCE: carried[0].chance_recall,
        own.READ_SPEED: positions / seconds,
        own.STREAMS: float(len(indices)),
    }
    if facts:
        measured[names.RECALL_ALL] = sum(one.recalled for one in carried) / facts
    if has_ttt:
        fresh, _, _ = _scores(module, loader, streams, indices, plan.forgets_every)
        measured |= _gain([one.loss for one in fresh], losses)
    return measured


def _scores(
    module: SpokenModule, loader: Loader, streams: ConversationSet, indices: Sequence[int], forgets_every: int | None
) -> tuple[list[ConversationScores], float, int]:
    """One stream's scores each, the seconds that reading took, and the positions read."""
    module.forgets_every = forgets_every
    found, seconds, positions = [], 0.0, 0
    for number, index in enumerate(indices):
        batch = loader.batch(streams, [index]).to(device())
        module.on_validation_epoch_start()
        started = time.perf_counter()
        module.validation_step(batch, number)
        seconds += time.perf_counter() - started
        positions += module.positions_of(batch)
        found.append(module.scores)
        how = "" if forgets_every is None else f", memory anew every {forgets_every:,}"
        print(f"stream {number + 1} of {len(indices)}: {module.positions_of(batch):,} positions{how}", flush=True)
    module.forgets_every = None
    return found, seconds, positions


def _means(section: str, streams: Sequence[BucketedMean]) -> dict[str, float]:
    """Over all streams together, by bucket."""
    joint = BucketedMean(streams[0].edges)
    for one in streams:
        joint.sums = [a + b for a, b in zip(joint.sums, one.sums, strict=True)]
        joint.counts = [a + b for a, b in zip(joint.counts, one.counts, strict=True)]
    return joint.means(section)


def _gain(fresh: Sequence[BucketedMean], carried: Sequence[BucketedMean]) -> dict[str, float]:
    """By bucket, nats by which the loss is lower than with a fresh memory, stream by stream; with its interval."""
    buckets = names.buckets(carried[0].edges)
    found: dict[str, float] = {}
    for place, bucket in enumerate(buckets):
        pairs = [(a, b) for a, b in zip(fresh, carried, strict=True) if a.counts[place] and b.counts[place]]
        values = [a.sums[place] / a.counts[place] - b.sums[place] / b.counts[place] for a, b in pairs]
        if not values:
            continue
        value = estimate(values)
        found[names.bucket_name(own.GAIN_BY_POSITION, *bucket)] = value.mean
        if not math.isnan(value.low):
            found[names.bucket_name(f"{own.GAIN_BY_POSITION}_low", *bucket)] = value.low
            found[names.bucket_name(f"{own.GAIN_BY_POSITION}_high", *bucket)] = value.high
    return found


@torch.no_grad()
def memory_of_samples(module: SpokenModule, loader: Loader, streams: ConversationSet) -> dict[str, float]:
    """Peak bytes above the model's own, for each sample of one and of four that are read at once.

    Both are counted from before the first, each after what was freed is given back.
    """
    index = streams.split_indices("validation")[0]
    found = {}
    before = start_measuring()
    for samples in SAMPLES:
        batch: Any = loader.batch(streams, [index] * samples).to(device())
        module.on_validation_epoch_start()
        forget_peak()
        module.validation_step(batch, 0)
        found[f"{own.PEAK_PER_SAMPLE}{samples}"] = (peak_bytes() - before) / samples
    return found
