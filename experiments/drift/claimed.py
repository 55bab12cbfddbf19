"""Numbers that the claims C16-C19 are judged by, as metrics of the experiment's own run. Rules: the room's README."""

from __future__ import annotations

import math
from collections.abc import Sequence

from experiments.drift import metric_names as names
from experiments.drift.configuration import CLAIMED_UPDATES, DECAY_SUFFIX, DriftExperiment, ModelPart
from experiments.drift.results import (
    ModelResult,
    StateResult,
    difference,
    first_position_over,
    word_loss_differences,
)
from experiments.fact_streams.measures import StreamMeasures
from experiments.harness.estimates import Estimate

CLIFF_NATS = 0.05
NOTICEABLE_NATS = 0.01


def claim_metrics(
    experiment: DriftExperiment, states: Sequence[StateResult], models: dict[str, ModelResult]
) -> dict[str, float]:
    """All that the finished arms can tell; a metric whose arms are missing, or that is no number, is left out."""
    metrics = _exponents(states) | _gaps(states) | _state_costs(states)
    if models:
        metrics |= _model_metrics(experiment.model_part, models)
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def with_interval(name: str, found: Estimate) -> dict[str, float]:
    return {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high}


def _exponents(states: Sequence[StateResult]) -> dict[str, float]:
    """C17: exponents setting by setting, of whole streams and of their late part, and how many intervals hold 1."""
    metrics: dict[str, float] = {}
    found: dict[str, list[Estimate]] = {}
    for result in states:
        for name, exponent in (("exponent", result.exponent), ("late_exponent", result.late_exponent)):
            if not math.isnan(exponent.mean):
                metrics |= with_interval(f"C17/{result.treatment}_{name}_{result.setting}", exponent)
                found.setdefault(f"{result.treatment}_{name}", []).append(exponent)
    for name, exponents in found.items():
        means = [exponent.mean for exponent in exponents]
        metrics[f"C17/{name}_lowest"] = min(means)
        metrics[f"C17/{name}_highest"] = max(means)
        judged = [exponent for exponent in exponents if not math.isnan(exponent.low)]
        if judged:
            linear = sum(exponent.low <= 1 <= exponent.high for exponent in judged)
            metrics[f"C17/{name}_share_of_settings_that_may_be_1"] = linear / len(judged)
            below = sum(exponent.high < 1 for exponent in judged)
            metrics[f"C17/{name}_share_of_settings_below_1"] = below / len(judged)
            metrics[f"C17/{name}_widest_interval"] = max(exponent.high - exponent.low for exponent in judged)
    return metrics


def _gaps(states: Sequence[StateResult]) -> dict[str, float]:
    """C16, on random layers: how much worse a state fits its stream at the claimed update, and at the end."""
    metrics: dict[str, float] = {}
    for result in states:
        if result.treatment == "bf16":
            at_claimed = result.at(names.INNER_LOSS_GAP, CLAIMED_UPDATES)
            metrics |= with_interval(f"C16/bf16_inner_loss_gap_at_claimed_updates_{result.setting}", at_claimed)
            at_the_end = result.at_the_end(names.INNER_LOSS_GAP)
            metrics |= with_interval(f"C16/bf16_inner_loss_gap_at_the_end_{result.setting}", at_the_end)
    gaps = [result.at_the_end(names.INNER_LOSS_GAP).mean for result in states if result.treatment == "bf16"]
    if gaps:
        metrics["C16/bf16_inner_loss_gap_at_the_end_largest"] = max(gaps)
    return metrics


def _state_costs(states: Sequence[StateResult]) -> dict[str, float]:
    """C18, C19: errors, bytes and time of every treatment relative to FP32's in the same setting."""
    by_key = {(result.setting, result.treatment): result for result in states}
    metrics: dict[str, float] = {}
    for treatment in dict.fromkeys(result.treatment for result in states):
        own = [result for result in states if result.treatment == treatment]
        section = "C19" if treatment.startswith("autocast") else "C18"
        errors = [result.at_the_end(names.STATE_ERROR).mean for result in own]
        metrics[f"{section}/{treatment}_state_error_at_the_end_largest"] = max(errors)
        metrics[f"{section}/{treatment}_inner_loss_gap_at_the_end_largest"] = max(
            result.at_the_end(names.INNER_LOSS_GAP).mean for result in own
        )
        products = [result.costs[names.NARROW_INNER_PRODUCTS] for result in own]
        metrics[f"{section}/{treatment}_narrow_inner_products"] = max(products)
        for cost in (names.STATE_BYTES, names.SECONDS):
            ratios = [
                result.costs[cost] / by_key[result.setting, "fp32"].costs[cost]
                for result in own
                if by_key[result.setting, "fp32"].costs[cost]
            ]
            if ratios:
                mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
                metrics[f"{section}/{treatment}_{cost.split('/')[1]}_over_fp32"] = mean
    return metrics


def _model_metrics(part: ModelPart, models: dict[str, ModelResult]) -> dict[str, float]:
    """C16, C18, C19: the trained model against its reference, past the claimed update and across it."""
    edges, end = part.position_edges, part.position_edges[-1]
    metrics: dict[str, float] = {}
    for treatment, result in models.items():
        if treatment == result.against:
            continue
        section = "C19" if treatment.startswith("autocast") else "C18"
        last = (edges[-2], end)
        differences = word_loss_differences(models, treatment, edges)
        metrics |= with_interval(f"{section}/{treatment}_word_loss_difference_in_last_bucket", differences[-1][1])
        metrics[f"{section}/{treatment}_word_loss_difference_largest"] = max(found.mean for _, found in differences)
        for nats in (NOTICEABLE_NATS, CLIFF_NATS):
            first = first_position_over(differences, nats)
            metrics[f"{section}/{treatment}_first_position_over_{nats:g}_nats"] = first
            metrics[f"{section}/{treatment}_is_ever_over_{nats:g}_nats"] = float(not math.isnan(first))
        near = difference(models, treatment, lambda measures, last=last: measures.near_recall_between(*last))
        metrics |= with_interval(f"{section}/{treatment}_near_recall_difference_in_last_bucket", near)
        recall = difference(models, treatment, lambda measures: measures.recall_between(*part.far))
        metrics |= with_interval(f"{section}/{treatment}_far_recall_difference", recall)
    for suffix in ("", DECAY_SUFFIX):
        if f"bf16{suffix}" in models:
            metrics |= _cliff(part, models, f"bf16{suffix}", "updates", part.claimed_position)
            metrics |= _cliff(part, models, f"bf16{suffix}", "tokens", CLAIMED_UPDATES)
        if f"fp32{suffix}" in models:
            metrics |= _age(part, models[f"fp32{suffix}"])
    return metrics


def _cliff(part: ModelPart, models: dict[str, ModelResult], treatment: str, name: str, place: int) -> dict[str, float]:
    """How much a treatment's difference to its reference rises from the octave before a position to the one after."""
    before, after = (place // 2, place), (place, 2 * place)
    if not {*before, *after} <= set(part.position_edges):
        return {}
    end = part.position_edges[-1]

    def rise(measures: StreamMeasures) -> float:
        return measures.word_loss_between(*after) - measures.word_loss_between(*before)

    past = difference(models, treatment, lambda measures: measures.word_loss_between(place, end))
    return {
        **with_interval(f"C16/{treatment}_rise_at_claimed_{name}_nats", difference(models, treatment, rise)),
        **with_interval(f"C16/{treatment}_word_loss_difference_past_claimed_{name}", past),
    }


def _age(part: ModelPart, fp32: ModelResult) -> dict[str, float]:
    """What a long stream does in FP32 already: word loss of its last bucket, above that of the trained lengths; and
    the far recall that there is to lose."""
    edges, trained = part.position_edges, part.training.longest_positions
    early = (0, max(edge for edge in edges if edge <= max(trained, edges[1])))
    rises = [
        measures.word_loss_between(edges[-2], edges[-1]) - measures.word_loss_between(*early)
        for measures in fp32.by_seed.values()
    ]
    recalls = [measures.recall_between(*part.far) for measures in fp32.by_seed.values()]
    return {
        f"C16/{fp32.treatment}_word_loss_in_last_bucket_above_trained_lengths": sum(rises) / len(rises),
        f"C16/{fp32.treatment}_far_recall": sum(recalls) / len(recalls),
    }
