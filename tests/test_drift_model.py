"""The trained model under every treatment: streamed in calls of several tokens, autocast, and what claims read off."""

from __future__ import annotations

import dataclasses

import numpy
import pytest
import torch
from torch import Tensor

pytest.importorskip("moshi", reason="needs moshi; runs where `make setup` was")

from experiments.drift import metric_names as names
from experiments.drift.claimed import claim_metrics
from experiments.drift.configuration import ModelPart, StateArm, Treatment
from experiments.drift.curves import DriftCurves
from experiments.drift.model_arm import long_streams
from experiments.drift.model_streams import build_model, build_treated, streamed_logits
from experiments.drift.results import ModelResult, StateResult, difference, first_position_over, word_loss_differences
from experiments.fact_streams import reading
from experiments.fact_streams.measures import StreamMeasures
from experiments.recipes.bf16_drift import bf16_drift

POSITIONS = 43


def part_of(tokens_per_call: int = 7) -> ModelPart:
    """The smoke scale's small model, with every treatment of the others."""
    treatments = bf16_drift(scale="cpu", seed=0).model_part.treatments
    small = bf16_drift(scale="smoke", seed=0).model_part
    return dataclasses.replace(small, tokens_per_call=tokens_per_call, treatments=treatments)


def treatment_of(part: ModelPart, name: str) -> Treatment:
    [found] = [each for each in part.treatments if each.name == name]
    return found


def logits_of(part: ModelPart, name: str) -> Tensor:
    weights = build_model(part, seed=4).state_dict()
    treatment = treatment_of(part, name)
    codes = long_streams(part, seed=4).codes[:, :, :POSITIONS]
    return streamed_logits(build_treated(part, 4, treatment, weights), codes, part.tokens_per_call, treatment)


@pytest.mark.parametrize("name", ["fp32", "bf16", "bf16_compensated"])
def test_several_tokens_a_call_are_one_token_a_call_past_the_rings_wrap(name: str) -> None:
    part = part_of()
    lm = build_treated(part, 4, treatment_of(part, name), build_model(part, seed=4).state_dict())
    one = reading.streamed_logits(lm, long_streams(part, seed=4).codes[:, :, :POSITIONS])
    assert 4 * part.model.context < POSITIONS
    # A state between two numbers may be rounded either way, where two splits differ in FP32's last bits.
    tolerance = 1e-5 if name == "fp32" else 1e-3
    torch.testing.assert_close(logits_of(part, name), one, atol=tolerance, rtol=0)


def test_treatments_of_a_seed_share_every_weight_and_differ_in_the_state_alone() -> None:
    part = part_of()
    fp32, fp64, bf16 = (logits_of(part, name) for name in ("fp32", "fp64", "bf16"))
    torch.testing.assert_close(fp64, fp32, atol=1e-4, rtol=0)
    assert float((bf16 - fp32).abs().max()) > 1e-3
    with pytest.raises(AssertionError):
        torch.testing.assert_close(logits_of(part, "autocast_unguarded"), logits_of(part, "autocast_guarded"))


def test_a_treatment_with_decay_forgets_and_is_compared_with_fp32_that_forgets() -> None:
    part = part_of()
    decays = [each for each in part.treatments if each.inner_decay is not None]
    assert len(decays) == 2 and {each.against for each in decays} == {"fp32_decay"}
    assert all(each.applied_to(part.ttt).inner_decay == 0.03 for each in decays)
    assert treatment_of(part, "bf16").applied_to(part.ttt).inner_decay == 0
    assert float((logits_of(part, "fp32_decay") - logits_of(part, "fp32")).abs().max()) > 1e-4


def test_autocast_surrounds_the_ttt_layer_alone_and_ends_with_the_stream() -> None:
    part = part_of()
    treatment = treatment_of(part, "autocast_guarded")
    lm = build_treated(part, 4, treatment, build_model(part, seed=4).state_dict())
    seen: list[tuple[str, bool]] = []
    for name in ("gating", "self_attn.ttt.wq"):
        for place, layer in enumerate(lm.transformer.layers):
            modules = dict(layer.named_modules())
            if name in modules:
                modules[name].register_forward_hook(
                    lambda *_, label=f"{place}.{name}": seen.append((label, torch.is_autocast_enabled("cpu")))
                )
    streamed_logits(lm, long_streams(part, seed=4).codes[:, :, :POSITIONS], part.tokens_per_call, treatment)
    assert set(seen) == {
        ("0.gating", False), ("1.gating", False), ("1.self_attn.ttt.wq", True)
    }  # fmt: skip
    lm.transformer.layers[1].self_attn.ttt.wq.register_forward_hook(_fail)
    with pytest.raises(RuntimeError, match="planted"):
        streamed_logits(lm, long_streams(part, seed=4).codes, part.tokens_per_call, treatment)
    assert not torch.is_autocast_enabled("cpu")


def _fail(*_: object) -> None:
    raise RuntimeError("planted")


EDGES = (0, 1875, 3750, 7500, 15000, 30000)


def measures_with(losses: list[float], recalled: float) -> StreamMeasures:
    """One stream of 10 words a bucket with these mean losses, and 4 answers of which so many are recalled."""
    counts = numpy.full((1, len(losses)), 10.0)
    return StreamMeasures(
        position_edges=EDGES, distance_edges=(0, 16, 64), word_loss_sums=counts * losses, legal_sums=counts,
        word_counts=counts, recalled=numpy.array([[4.0, recalled]]), asked=numpy.full((1, 2), 4.0),
        answer_loss_sums=numpy.zeros((1, 2)), near_recalled=counts * recalled / 4, near_asked=counts,
            excess_sums=counts * losses, near_loss_sums=counts,
    )  # fmt: skip


def planted_models() -> dict[str, ModelResult]:
    """bf16 is 0.02 nats above fp32 from 3,750 on and 0.1 from 15,000 on, and 0.01 more or less by seed."""
    flat, step = [1.0] * 5, numpy.array([0.0, 0.0, 0.02, 0.02, 0.1])
    by_seed = {seed: measures_with(flat, 4) for seed in range(3)}
    rounded = {seed: measures_with((1.0 + step + shift).tolist(), 3) for seed, shift in enumerate((-0.01, 0.0, 0.01))}
    return {
        "fp32": ModelResult(treatment="fp32", against="fp32", by_seed=by_seed),
        "bf16": ModelResult(treatment="bf16", against="fp32", by_seed=rounded),
    }


def test_differences_are_paired_by_seed_and_the_first_bucket_beyond_is_named() -> None:
    models = planted_models()
    found = word_loss_differences(models, "bf16", EDGES)
    assert [round(row.mean, 6) for _, row in found] == [0, 0, 0.02, 0.02, 0.1]
    half = 4.302653 * 0.01 / 3**0.5  # Student's t with two degrees of freedom
    assert found[0][1].high == pytest.approx(half, rel=1e-5)
    assert first_position_over(found, 0.01) == 3750 and first_position_over(found, 0.05) == 15000
    assert numpy.isnan(first_position_over(found, 0.11))
    recall = difference(models, "bf16", lambda measures: measures.recall_between(16, 64))
    assert (recall.mean, recall.low, recall.seeds) == (-0.25, -0.25, 3)


def test_the_claims_read_a_planted_cliff_where_it_is_and_the_age_of_fp32_apart_from_it() -> None:
    experiment = bf16_drift(scale="cpu", seed=0)
    part = dataclasses.replace(experiment.model_part, position_edges=EDGES)
    metrics = claim_metrics(dataclasses.replace(experiment, model_part=part), [], planted_models())
    assert metrics["C16/bf16_rise_at_claimed_updates_nats"] == pytest.approx(0.08)
    assert metrics["C16/bf16_rise_at_claimed_updates_nats_low"] == pytest.approx(0.08)  # the seeds' shifts cancel
    assert metrics["C16/bf16_rise_at_claimed_tokens_nats"] == pytest.approx(0.02)
    assert metrics["C16/bf16_word_loss_difference_past_claimed_updates"] == pytest.approx(0.1)
    assert metrics["C16/fp32_word_loss_in_last_bucket_above_trained_lengths"] == 0
    assert metrics["C18/bf16_first_position_over_0.05_nats"] == 15000
    assert metrics["C18/bf16_is_ever_over_0.05_nats"] == 1
    assert metrics["C18/bf16_far_recall_difference"] == -0.25 and metrics["C16/fp32_far_recall"] == 1
    assert metrics["C18/bf16_near_recall_difference_in_last_bucket"] == -0.25
    assert not any("fp32_word_loss_difference" in name for name in metrics)


def planted_state(exponent: float, offset: float, treatment: str) -> StateResult:
    """Two seeds of two streams: a plateau of 1e-3 up to update 50, then a power law; a loss gap growing 1 % an update
    in all streams but one."""
    updates = numpy.array([1.0, 10, 50, 100, 200, 400])
    law = 1e-3 * (numpy.maximum(updates, 50) / 50) ** exponent
    flat_loss, growing = numpy.ones((2, 6)), numpy.stack([numpy.ones(6), 1 + updates * 0.01])
    curves = [
        DriftCurves(
            updates=updates, state_error=numpy.stack([law, law * updates ** (shift + offset)]), output_error=flat_loss,
            inner_loss=growing if shift else numpy.stack([1 + updates * 0.01] * 2), reference_inner_loss=flat_loss,
            lost_share=flat_loss / 4, step_error=flat_loss,
        )
        for shift in (0.0, 0.02)
    ]  # fmt: skip
    arm = StateArm(inner_model="linear", mini_batch_size=16, step_factors=(1.0,), streams=2)
    costs = {names.STATE_BYTES: 3.0, names.SECONDS: 2.0, names.NARROW_INNER_PRODUCTS: 0.0}
    return StateResult(
        arm=arm, kind="speech", step_factor=1.0, treatment=treatment, curves=tuple(curves), costs=costs,
        exponent_from=8, late_share=0.125,
    )  # fmt: skip


def test_a_plateau_is_left_out_of_the_late_exponent_alone() -> None:
    result = planted_state(exponent=1.0, offset=0.0, treatment="bf16")
    assert result.late_exponent.mean == pytest.approx(1.005)
    assert result.exponent.mean < 0.8 and result.late_exponent.seeds == 4
    assert result.at(names.LOST_SHARE, 100).mean == 0.25 and numpy.isnan(result.at(names.LOST_SHARE, 3750).mean)


def test_first_gaps_are_medians_over_streams_with_those_that_never_are() -> None:
    result = planted_state(exponent=1.0, offset=0.0, treatment="bf16")
    assert result.first_gap(0.05) == (10, 3, 4)
    assert result.first_gap(0.20) == (50, 3, 4)
    assert result.first_gap(9.0) == (numpy.inf, 0, 4)


def test_the_claims_tell_a_linear_growth_from_a_root_by_its_interval() -> None:
    experiment = bf16_drift(scale="cpu", seed=0)
    for exponent, may_be_1 in ((1.0, 1.0), (0.5, 0.0)):
        states = [planted_state(exponent, -0.01, treatment) for treatment in ("fp32", "bf16")]
        metrics = claim_metrics(experiment, states, {})
        assert metrics["C17/bf16_late_exponent_linear_b16_speech_lr1"] == pytest.approx(exponent, abs=0.01)
        assert metrics["C17/bf16_late_exponent_share_of_settings_that_may_be_1"] == may_be_1
        assert metrics["C17/bf16_late_exponent_share_of_settings_below_1"] == 1 - may_be_1
        assert metrics["C17/bf16_late_exponent_widest_interval"] < 0.1
        assert metrics["C16/bf16_inner_loss_gap_at_the_end_linear_b16_speech_lr1"] == pytest.approx(3.0)
        assert metrics["C18/bf16_state_bytes_per_stream_over_fp32"] == 1
