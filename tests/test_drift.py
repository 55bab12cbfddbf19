"""Drift of a state: what is counted, what grows and how fast, and that planted faults are seen for what they are."""

from __future__ import annotations

import dataclasses
import math

import numpy
import pytest
import torch
from torch import Tensor

from experiments.drift.autocast_probe import narrow_inner_products
from experiments.drift.configuration import CLAIMED_UPDATES, StateArm, Treatment, autocast_treatments
from experiments.drift.curves import DriftCurves, compare, first_beyond, growth_exponent
from experiments.drift.report import cost_sentences
from experiments.drift.state_arm import draw_rows, rows_of, settings
from experiments.drift.state_streams import Rows, TreatedLayer, flat, in_fp64, share_lost, snapshots
from experiments.drift.vectors import draw_vectors
from experiments.harness.identity import fingerprint
from experiments.harness.study import SCALES
from experiments.recipes.bf16_drift import bf16_drift
from ttt_core import TTTConfig
from ttt_core.precision import POLICIES, CommitPlace, RoundedToNearest

CHECKPOINTS = (1, 2, 5, 11)
PROBE = 7


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoundedToBits(RoundedToNearest):
    """A planted fault: so many significant bits, and no more, survive a commit."""

    bits: int

    def round(self, values: Tensor, place: CommitPlace | None) -> Tensor:
        mantissa, exponent = torch.frexp(values)
        return torch.ldexp((mantissa * 2**self.bits).round() / 2**self.bits, exponent)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lost(RoundedToNearest):
    """A planted fault: nothing survives a commit."""

    def round(self, values: Tensor, place: CommitPlace | None) -> Tensor:
        return torch.zeros_like(values)

    def store(self, values: Tensor) -> Tensor:
        return torch.zeros_like(values, dtype=self.dtype)


def config_of(inner_model: str, size: int = 3) -> TTTConfig:
    return TTTConfig(hidden_size=12, num_heads=2, inner_model=inner_model, mini_batch_size=size)  # pyright: ignore


def rows_for(size: int = 3) -> Rows:
    vectors = torch.randn(3, CHECKPOINTS[-1] * size + PROBE, 12, generator=torch.Generator().manual_seed(5))
    return Rows(vectors=vectors, base_lr=torch.tensor([0.3, 1.0, 4.0]))


def curves_of(precision: str, inner_model: str = "linear", tokens_per_call: int = 10) -> DriftCurves:
    def run(name: str) -> list:  # pyright: ignore
        treatment = Treatment(name=name, precision=name, against="fp64")  # pyright: ignore
        treated = TreatedLayer.build(config_of(inner_model), treatment, seed=3)
        return list(snapshots(treated, rows_for(), CHECKPOINTS, PROBE, tokens_per_call))

    return compare(CHECKPOINTS, run(precision), run("fp64"))


@pytest.mark.parametrize("inner_model", ["linear", "mlp"])
def test_fp64_against_itself_differs_in_nothing_and_loses_nothing(inner_model: str) -> None:
    curves = curves_of("fp64", inner_model)
    for measured in (curves.state_error, curves.output_error, curves.inner_loss_gap, curves.step_error):
        assert measured.shape == (3, len(CHECKPOINTS)) and not measured.any()
    assert not curves.lost_share.any()
    assert (curves.inner_loss > 0).all()


def test_fp32_is_fp64_to_its_last_places_and_bf16_is_not() -> None:
    assert 0 < curves_of("fp32").state_error.max() < 1e-6
    assert curves_of("bf16").state_error.min() > 1e-4


def test_a_policy_planted_to_lose_everything_is_reported_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(POLICIES, "lost", Lost(dtype=torch.bfloat16))
    curves = curves_of("lost")
    assert (curves.lost_share == 1).all()
    assert (curves.state_error == 1).all() and (curves.step_error == 1).all()


def test_a_state_planted_to_keep_four_bits_is_told_from_bf16s_eight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(POLICIES, "four_bits", RoundedToBits(dtype=torch.bfloat16, bits=4))
    monkeypatch.setitem(POLICIES, "eight_bits", RoundedToBits(dtype=torch.bfloat16, bits=8))
    four, eight, bf16 = curves_of("four_bits"), curves_of("eight_bits"), curves_of("bf16")
    numpy.testing.assert_array_equal(eight.state_error, bf16.state_error)
    assert (four.state_error > 3 * bf16.state_error).all()
    assert four.lost_share[0, -1] > bf16.lost_share[0, -1]


def test_lost_updates_are_counted_by_hand() -> None:
    should_move = torch.tensor([[True, True, True, False], [False] * 4, [True] * 4])
    moved = torch.tensor([[0.0, 0.5, 0.0, 0.0], [1.0] * 4, [1.0, -1.0, 2.0, 0.0]])
    lost = share_lost(should_move, moved)
    assert lost[0] == pytest.approx(2 / 3) and lost[1].isnan() and lost[2] == 0.25


def test_a_lost_update_is_one_below_half_of_the_weights_last_place() -> None:
    """Redone by hand: the FP64 step is lost where |step| rounds away, ulp by ulp."""
    treatment = Treatment(name="bf16", precision="bf16", against="fp64")
    treated, rows = TreatedLayer.build(config_of("linear"), treatment, seed=3), rows_for()
    found = list(snapshots(treated, rows, CHECKPOINTS, PROBE, 10))[2]
    before = treated.layer(rows.part(0, 15), base_lr=rows.step_sizes)[2]
    following = rows.part(15, 18)
    exact = treated.exact(following, in_fp64(before, treated.exact), base_lr=rows.step_sizes)[2]
    start, wanted = flat(before.working_weights), flat(exact.working_weights)
    ends_where_it_began = wanted.float().bfloat16().double() == start
    should_move = wanted != start
    expected = (ends_where_it_began & should_move).sum(dim=1) / should_move.sum(dim=1)
    torch.testing.assert_close(found.lost_share, expected.double(), atol=0.011, rtol=0)  # one weight of 90 at a tie
    torch.testing.assert_close(found.weights, start, atol=0, rtol=0)
    assert 0.05 < float(found.lost_share[0]) < 1


def test_where_calls_end_changes_no_curve() -> None:
    whole, split = curves_of("bf16", tokens_per_call=1000), curves_of("bf16", tokens_per_call=7)
    numpy.testing.assert_allclose(split.state_error, whole.state_error, rtol=1e-3)
    numpy.testing.assert_allclose(split.inner_loss, whole.inner_loss, rtol=1e-5)


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 1.7])
def test_the_exponent_of_a_planted_power_law_is_found_behind_its_transient(exponent: float) -> None:
    updates = numpy.array([1.0, 2, 3, 8, 20, 100, 3750, 60000])
    errors = 1e-5 * updates**exponent
    errors[:3] = 0.3
    assert growth_exponent(updates, errors, from_updates=8) == pytest.approx(exponent)
    assert growth_exponent(updates, errors, from_updates=1) != pytest.approx(exponent)


def test_an_error_that_is_zero_has_no_exponent() -> None:
    assert math.isnan(growth_exponent(numpy.arange(1.0, 9), numpy.zeros(8), from_updates=1))


def test_a_rounded_random_walk_and_a_rounded_drift_are_told_apart() -> None:
    """The same sum in FP64 and with each step's error planted: independent errors grow as a root, a bias as updates."""
    generator = numpy.random.default_rng(2)
    updates = numpy.unique(numpy.geomspace(1, 30_000, 40).astype(int)).astype(float)
    walks = numpy.abs(numpy.cumsum(generator.normal(size=(400, 30_000)), axis=1))[:, updates.astype(int) - 1]
    root = growth_exponent(updates, numpy.sqrt((walks**2).mean(axis=0)), from_updates=8)
    assert root == pytest.approx(0.5, abs=0.05)
    assert growth_exponent(updates, 0.01 * updates, from_updates=8) == pytest.approx(1)


def test_the_first_gap_is_the_first_and_never_is_never() -> None:
    places = numpy.array([1.0, 2, 4, 8])
    assert first_beyond(places, numpy.array([0.0, 0.06, 0.01, 0.3]), 0.05) == 2
    assert first_beyond(places, numpy.array([0.0, numpy.nan, 0.01, 0.3]), 0.05) == 2
    assert math.isnan(first_beyond(places, numpy.array([-0.9, 0.05, 0.01, 0.0]), 0.05))


@pytest.mark.parametrize("inner_model", ["linear", "mlp"])
def test_autocast_reaches_the_inner_products_only_where_it_is_let_in(inner_model: str) -> None:
    treatments = autocast_treatments("fp64") + autocast_treatments("fp32")
    assert sum(each.is_reference for each in treatments) == 2
    vectors = rows_for().part(0, 6)
    for treatment in treatments:
        treated = TreatedLayer.build(config_of(inner_model), treatment, seed=3)
        products = narrow_inner_products(treated, vectors)
        assert (products > 0) == (not treatment.guards_autocast)
    assert not torch.is_autocast_enabled("cpu")


def test_vectors_are_what_their_kind_says_and_follow_from_their_seed() -> None:
    mels = [numpy.random.default_rng(n).normal(3.0, 2.0, size=(19 + n, 80)).astype(numpy.float32) for n in range(4)]

    def drawn(kind: str, seed: int = 1) -> Tensor:
        return draw_vectors(kind, 2, 4001, 6, 0.9, mels, (seed, 2))  # pyright: ignore

    for kind, neighbours in (("iid", 0.0), ("correlated", 0.9), ("speech", 0.0)):
        x = drawn(kind)
        assert x.shape == (2, 4001, 6) and x.dtype == torch.float32
        torch.testing.assert_close(x, drawn(kind), atol=0, rtol=0)
        assert not torch.equal(x, drawn(kind, seed=2)) and not torch.equal(x[0], x[1])
        assert float((x[:, 1:] * x[:, :-1]).mean() / x.square().mean()) == pytest.approx(neighbours, abs=0.1)
        assert float(x.square().mean()) == pytest.approx(1, abs=0.25)


def test_speech_streams_are_whole_utterances_end_to_end() -> None:
    mels = [numpy.full((3, 80), float(n), dtype=numpy.float32) for n in range(3)]
    x = draw_vectors("speech", 1, 18, 4, 0.9, mels, (1,))[0]
    by_utterance = x.unflatten(0, (6, 3))
    assert torch.equal(by_utterance[:, 0], by_utterance[:, 1]) and torch.equal(by_utterance[:, 0], by_utterance[:, 2])
    for round_of_all in (by_utterance[:3, 0], by_utterance[3:, 0]):
        assert len(torch.unique(round_of_all, dim=0)) == 3


def test_rows_hold_the_same_streams_under_every_step_size() -> None:
    experiment = bf16_drift(scale="smoke", seed=0)
    arm = StateArm(inner_model="mlp", mini_batch_size=4, step_factors=(1.0, 8.0), streams=2)
    mels = [numpy.random.default_rng(0).normal(size=(50, 80)).astype(numpy.float32)]
    rows = draw_rows(experiment, arm, mels)
    names = settings(experiment, arm)
    assert len(rows.vectors) == len(names) * 2 == 12
    for number, (kind, factor) in enumerate(names):
        own = list(rows_of(arm, number))
        assert torch.equal(rows.base_lr[own], torch.full((2,), 0.1 * factor))
        first = list(rows_of(arm, names.index((kind, 1.0))))
        assert torch.equal(rows.vectors[own], rows.vectors[first])
    assert not torch.equal(rows.vectors[0], rows.vectors[4])


@pytest.mark.parametrize("scale", SCALES)
def test_every_scale_looks_at_the_claimed_update_wherever_its_streams_reach_it(scale: str) -> None:
    experiment = bf16_drift(scale=scale, seed=1)  # pyright: ignore
    for arm in experiment.state_arms:
        checkpoints = experiment.state.checkpoints(arm.mini_batch_size)
        assert checkpoints[0] == 1 and list(checkpoints) == sorted(set(checkpoints))
        assert checkpoints[-1] == experiment.state.tokens // arm.mini_batch_size
        assert (CLAIMED_UPDATES in checkpoints) == (checkpoints[-1] >= CLAIMED_UPDATES)
    assert len({fingerprint(experiment.of_arm(name)) for name in experiment.arm_names}) == len(experiment.arm_names)
    part = experiment.model_part
    assert len({fingerprint(experiment.of_view(each)) for each in part.treatments}) == len(part.treatments)
    if scale != "smoke":
        assert len(part.treatments) == 11
        place = part.claimed_position
        assert {place // 2, place, 2 * place, CLAIMED_UPDATES} <= set(part.position_edges)
        assert part.positions >= 100_000 and experiment.state.tokens >= 60_000


def test_an_arm_without_the_default_step_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must hold 1\.0"):
        StateArm(inner_model="mlp", mini_batch_size=4, step_factors=(2.0,), streams=1)


def test_what_a_policy_costs_is_told_from_its_metrics_and_only_where_it_was_measured() -> None:
    metrics = {
        "C18/bf16_compensated_inner_loss_gap_at_the_end_largest": 0.00002,
        "C18/bf16_compensated_state_bytes_per_stream_over_fp32": 1.0,
        "C18/bf16_compensated_seconds_per_update_over_fp32": 1.184,
        "C18/fp32_inner_loss_gap_at_the_end_largest": 0.0,
    }
    [line] = cost_sentences(metrics)
    assert line.startswith("bf16_compensated: inner loss at most 0.00% above")
    assert "1.00 times the bytes" in line and "1.18 times" in line
