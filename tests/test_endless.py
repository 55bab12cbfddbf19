"""Endless streams: calls of many tokens against single ones, carried training against autograd, planted curves."""

from __future__ import annotations

import dataclasses
import math
from itertools import pairwise
from pathlib import Path

import numpy
import pytest
import torch

from backbones.moshi import lm_forward_with_states, ttt_layers
from experiments.endless.arm import build_model, long_streams, topic_streams
from experiments.endless.carried_training import CarriedStateModule, CarriedStreamData, Segments
from experiments.endless.configuration import EndlessExperiment, Training, View
from experiments.endless.measures import (
    TopicCurves,
    ViewMeasures,
    remembered_by_position,
    topic_curves,
)
from experiments.endless.report import equilibrium
from experiments.endless.results import ViewResult, findings
from experiments.endless.streaming import Probe, probe_positions, stream_logits
from experiments.endless.topics import with_topics
from experiments.endless.trends import growth_exponent, half_life
from experiments.fact_streams import reading
from experiments.fact_streams.generate import draw_streams
from experiments.fact_streams.measures import measure_streams
from experiments.fact_streams.module import FactStreamData, text_losses
from experiments.fact_streams.spec import ASK, FIRST_HEARD_VALUE
from experiments.harness.estimates import Estimate
from experiments.harness.identity import fingerprint
from experiments.harness.study import SCALES
from experiments.recipes import RECIPES


def smoke(recipe: str = "endless-stream") -> EndlessExperiment:
    config = RECIPES[recipe].configure(scale="smoke", seed=4)
    assert isinstance(config, EndlessExperiment)
    return config


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("recipe", ["endless-stream", "rope-reset"])
def test_every_scale_streams_long_enough_and_every_arm_differs(recipe: str, scale: str) -> None:
    config = RECIPES[recipe].configure(scale=scale, seed=1)
    assert isinstance(config, EndlessExperiment)
    times = config.plan.positions / config.trained_positions
    assert times >= (8 if recipe == "rope-reset" else 16 if scale == "smoke" else 200)
    assert len({fingerprint(config.of_arm(name)) for name in config.arm_names}) == len(config.arm_names)
    assert len({fingerprint(config.of_view(view)) for view in config.views}) == len(config.views)
    assert all(config.views_of(name) for name in config.arm_names)


def test_a_view_that_can_not_be_streamed_is_refused_with_what_to_change() -> None:
    config = smoke()
    ttt = config.trainings[1].ttt
    with pytest.raises(ValueError, match="neither divides 64 tokens per call"):
        dataclasses.replace(config, views=(View(name="x", training="reset-plain", ttt=ttt, reset_every=48),))
    with pytest.raises(ValueError, match="compared with 'nobody'"):
        dataclasses.replace(config, views=(View(name="x", training="reset-plain", ttt=ttt, control="nobody"),))
    with pytest.raises(ValueError, match="must both have TTT"):
        dataclasses.replace(config, views=(View(name="x", training="window-only", ttt=ttt),))
    with pytest.raises(ValueError, match="has no TTT"):
        Training(name="x", ttt=None, carries_state=True)
    with pytest.raises(ValueError, match="a topic can change between calls"):
        dataclasses.replace(config.plan, topic_changes=(3,))


@pytest.mark.parametrize("option", ["plain", "decay-at-test-bf16", "renormalise-at-test"])
def test_streaming_several_tokens_a_call_is_streaming_one_a_call(option: str) -> None:
    config = smoke()
    name = "reset-plain" if option == "plain" else f"reset-plain-{option}"
    [view] = [view for view in config.views if view.name == name]
    lm = build_model(config, view.ttt).eval()
    rounds = "bf16" in option
    if not rounds:
        lm.double()  # large inner steps amplify what FP32 rounds off
    codes = draw_streams(config.stream, 3, 69, (9,)).codes
    slow = reading.streamed_logits(lm, codes)
    fast = stream_logits(lm, codes, 23, probed=(0,)).logits
    assert fast.shape == slow.shape
    torch.testing.assert_close(fast, slow, rtol=0, atol=2e-2 if rounds else 1e-9)


def test_probes_see_the_state_that_a_batched_call_reaches() -> None:
    config = smoke()
    lm = build_model(config, config.trainings[1].ttt).eval()
    codes = draw_streams(config.stream, 2, 48, (9,)).codes
    probes = stream_logits(lm, codes, 16, probed=(0, 32)).probes
    inputs = reading.model_inputs(lm, codes)
    with torch.no_grad():
        # One window of attention more than a segment shows makes no difference to the layer below: it is batched.
        _, _, states = lm_forward_with_states(lm, inputs[:, :, :32])
        _, _, after = lm_forward_with_states(lm, inputs[:, :, :36])
    [state], [later] = states.values(), after.values()
    norm = torch.cat([part.flatten(1) for part in state.weights.tensors], dim=1).norm(dim=1)
    moved = [(a - b).flatten(1) for a, b in zip(later.weights.tensors, state.weights.tensors, strict=True)]
    assert [probe.position for probe in probes] == [0, 32]
    assert probes[1].inner_norm == pytest.approx(norm.mean().item(), rel=1e-4)
    assert probes[1].effective_step == pytest.approx((torch.cat(moved, 1).norm(dim=1) / norm).mean().item(), rel=1e-3)
    assert probes[1].largest_weight == pytest.approx(state.W1.abs().max().item(), rel=1e-4)


def test_a_reset_forgets_all_that_tests_could_find_and_nothing_of_attention() -> None:
    config = smoke()
    lm = build_model(config, config.trainings[1].ttt).eval()
    codes = draw_streams(config.stream, 2, 64, (9,)).codes
    other = codes.clone()
    first = config.model.pinned  # attention never forgets those before
    other[:, :, first:16] = draw_streams(config.stream, 2, 16, (10,)).codes[:, :, first:]
    kept, reset = (
        [stream_logits(lm, each, 16, resets=resets).logits[:, 40:] for each in (codes, other)] for resets in ((), (32,))
    )
    assert not torch.equal(*kept)
    torch.testing.assert_close(*reset, rtol=0, atol=1e-5)


def test_a_call_that_can_not_hold_a_probe_is_refused() -> None:
    config = smoke()
    lm = build_model(config, config.trainings[1].ttt).eval()
    codes = draw_streams(config.stream, 2, 8, (9,)).codes
    with pytest.raises(ValueError, match="behind its first mini-batch of 4"):
        stream_logits(lm, codes, 4, probed=(0,))


def test_probes_are_spread_over_the_logarithm_and_begin_calls() -> None:
    found = probe_positions(16384, 32, 30)
    assert found[0] == 0 and found[-1] == 16384 - 32 and all(place % 32 == 0 for place in found)
    assert 8 <= sum(place >= 1638 for place in found) <= 14


def test_topics_keep_keys_and_questions_and_change_every_habit() -> None:
    config = smoke()
    spec = dataclasses.replace(config.stream, longest_distance=9)
    drawn = draw_streams(spec, 5, 200, (3,))
    heard = with_topics(drawn, spec, (70, 131), (8,))
    assert torch.equal(heard.codes[:, 1], drawn.codes[:, 1]) and torch.equal(heard.distances, drawn.distances)
    assert torch.equal(heard.codes[:, 2] == ASK, drawn.codes[:, 2] == ASK)
    for row in range(5):
        habits = []
        for first, end in ((0, 70), (70, 131), (131, 200)):
            habit: dict[int, int] = {}
            for t in range(first, end):
                key, value = heard.codes[row, 1, t].item(), heard.codes[row, 2, t].item()
                if value >= FIRST_HEARD_VALUE:
                    assert habit.setdefault(key, value) == value
            habits.append(habit)
        for old, new in pairwise(habits):
            assert all(old[key] != new[key] for key in old.keys() & new.keys())
        for t in heard.is_answer[row].nonzero()[:, 0].tolist():
            stated = heard.codes[row, 2, t - heard.distances[row, t]].item()
            assert heard.codes[row, 0, t].item() == stated - FIRST_HEARD_VALUE + spec.first_value


def carried_data(config: EndlessExperiment) -> CarriedStreamData:
    return CarriedStreamData(config.stream, config.training, 3, 1, 7, lambda: 0)


def test_carried_segments_are_whole_conversations_cut_in_order() -> None:
    config = smoke()
    data = carried_data(config)
    fresh = FactStreamData(config.stream, config.training, 7, lambda: 0).training_batch(0)
    assert torch.equal(data.training_batch(0).codes, fresh.codes) and data.training_batch(0).begins.all()
    read = [data.training_batch(step) for step in range(1, 10)]
    assert read[0].begins.all()
    assert [batch.begins[1].item() for batch in read[1:]] == [False, True, False, False, True, False, False, True]
    for before, after in pairwise(read):
        going_on = ~after.begins
        assert torch.equal(after.codes_before[going_on], before.codes[going_on][:, :, -1])
    again = carried_data(config).training_batch(5)
    assert torch.equal(again.codes, read[4].codes) and torch.equal(again.distances, read[4].distances)


def test_a_carried_step_has_the_gradients_of_a_truncated_graph_and_skips_blind_words() -> None:
    config = smoke()
    ttt = config.trainings[1].ttt
    lm = build_model(config, ttt)
    module = CarriedStateModule(lm, config.stream, config.training, 4)
    module.manual_backward = lambda loss: loss.backward()  # type: ignore[method-assign]
    first, second = (carried_data(config).training_batch(step) for step in (1, 2))
    module.backward_batch(first)
    lm.zero_grad()
    module.backward_batch(second)
    found = {name: parameter.grad.clone() for name, parameter in lm.named_parameters() if parameter.grad is not None}

    plain = build_model(config, ttt)
    with torch.no_grad():
        _, _, states = lm_forward_with_states(plain, reading.model_inputs(plain, first.codes))
    assert not second.begins[[0, 1]].any(), "rows 0 and 1 go on"
    rows = (~second.begins).nonzero()[:, 0]
    total = torch.zeros(())
    for row in range(4):
        one = slice(row, row + 1)
        inputs = reading.model_inputs(plain, second.codes[one])
        carried = None
        if row in rows:
            inputs[:, :, 0] = first.codes[one, :, -1]
            carried = {layer: state.select([row]).detach() for layer, state in states.items()}
        logits = lm_forward_with_states(plain, inputs, carried)[1][:, 0]
        weights = torch.where(second.is_answer[one], config.training.answer_weight, 1.0)
        if row in rows:
            weights[:, :4] = torch.where(second.is_answer[one, :4], weights[:, :4], 0.0)
        total = total + (text_losses(logits, second.text[one]) * weights).sum()
    (total / module.loss_weights(second).sum()).backward()
    for name, parameter in plain.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-6, msg=name)


def test_what_is_carried_is_part_of_a_checkpoint() -> None:
    config = smoke()
    module, other = (
        CarriedStateModule(
            build_model(config, config.trainings[1].ttt), config.stream, config.training, config.words_left_out
        )
        for _ in range(2)
    )
    module.manual_backward = lambda loss: loss.backward()  # type: ignore[method-assign]
    module.backward_batch(carried_data(config).training_batch(1))
    other.load_state_dict(module.state_dict())
    begins = torch.tensor([False, True, False, False])
    [mine], [theirs] = module.states_before(begins).values(), other.states_before(begins).values()
    assert torch.equal(mine.W1, theirs.W1) and mine.count.tolist() == [16, 0, 16, 16]
    [layer] = ttt_layers(module.lm).values()
    torch.testing.assert_close(mine.W1[1], layer.inner.weights.W1)


def test_segments_move_to_another_device_whole() -> None:
    data = carried_data(smoke())
    moved = data.transfer_batch_to_device(data.training_batch(2), torch.device("meta"), 0)
    assert isinstance(moved, Segments) and moved.begins.device.type == moved.codes_before.device.type == "meta"


@pytest.mark.parametrize("exponent", [0.5, 0.0, -0.3, 1.0])
def test_a_planted_exponent_is_found_in_the_last_decade_alone(exponent: float) -> None:
    positions = probe_positions(16384, 32, 48)
    values = [max(place, 1) ** exponent if place > 1000 else 7.0 for place in positions]
    assert growth_exponent(positions, values) == pytest.approx(exponent, abs=1e-6)
    assert math.isnan(growth_exponent([10, 100], [1.0, 2.0]))


@pytest.mark.parametrize("wanted", [100.0, 300.0, 1100.0])
def test_a_planted_half_life_is_found_to_a_bin(wanted: float) -> None:
    places = (numpy.arange(64) + 0.5) * 64
    assert half_life(2.0 * 0.5 ** (places / wanted), 64) == pytest.approx(wanted, abs=64)


def test_a_shock_that_stays_has_an_infinite_half_life_and_none_has_none() -> None:
    flat = numpy.full(9, 0.7)
    assert half_life(flat, 64) == math.inf
    lucky = flat.copy()
    lucky[4] = 0.1
    assert half_life(lucky, 64) == math.inf, "one bin below the half is luck"
    assert math.isnan(half_life(-flat, 64))


def test_topic_curves_count_answers_to_facts_behind_the_change_alone() -> None:
    config = smoke()
    streams = topic_streams(config)
    positions, tokens = config.plan.topic_positions, config.stream.text_tokens
    fresh = torch.zeros(len(streams), positions, tokens)
    kept = torch.zeros_like(fresh)
    kept.scatter_(2, streams.text[:, :, None], -1.5)
    changes, reach = config.plan.topic_changes, config.model.context
    curves = topic_curves(kept, fresh, streams, changes, reach, 16)
    asked = 0
    for row in range(len(streams)):
        for t in range(changes[0], changes[0] + 16):
            distance = int(streams.distances[row, t])
            asked += reach <= distance <= t - changes[0]
    assert curves.asked[:, 0, 0].sum() == asked
    loss = math.log((tokens - 1) + math.exp(-1.5)) + 1.5
    assert numpy.nanmax(abs(curves.excess() - (loss - math.log(tokens)))) < 1e-5


def planted_view(view: View, config: EndlessExperiment, recall_old: float, growth: float) -> ViewResult:
    """Two seeds of a view whose recall falls to `recall_old` in the last half, and whose norm grows."""
    streams = long_streams(config)
    edges = config.plan.position_edges
    generator = torch.Generator().manual_seed(0)
    logits = torch.zeros(*streams.text.shape, config.stream.text_tokens)
    forgets = torch.rand(streams.text.shape, generator=generator) > recall_old
    forgets[:, : config.plan.positions // 2] = False
    logits.scatter_(2, torch.where(forgets, (streams.text + 1) % 4, streams.text)[:, :, None], 9.0)
    reach, trained = config.model.context, config.trained_positions
    remembered, wanted = remembered_by_position(logits, streams, edges, reach, trained)
    probes = tuple(
        Probe(position=place, inner_norm=(1 + place) ** growth, effective_step=0.1, largest_weight=1.0)
        for place in probe_positions(config.plan.positions, 16, 20)
    )
    measures = ViewMeasures(
        streams=measure_streams(logits, None, streams, config.stream, edges, config.plan.distance_edges, trained),
        remembered=remembered,
        wanted=wanted,
        probes=probes,
        topics=TopicCurves(
            kept_loss=numpy.array([[[2.0, 1.0, 1.0, 1.0]]]), fresh_loss=numpy.ones((1, 1, 4)),
            asked=numpy.ones((1, 1, 4)),
        ),
    )  # fmt: skip
    return ViewResult(view=view, seeds=(0, 1), measures=(measures, measures))


def test_findings_read_planted_forgetting_growth_and_recovery(tmp_path: Path) -> None:
    config = smoke()
    plan = dataclasses.replace(config.plan, topic_changes=(64,))
    config = dataclasses.replace(config, plan=plan)
    views = {view.name: view for view in config.views}
    forgetful = planted_view(views["reset-plain"], config, 0.0, 0.5)
    control = planted_view(views["reset-plain-reset-every-T"], config, 1.0, 0.0)
    found = findings(config, {"reset-plain": forgetful, "reset-plain-reset-every-T": control})["reset-plain"]
    assert found["recall_lost_with_age"].mean == pytest.approx(1.0)
    assert found["recall_against_control_old"].mean == pytest.approx(-1.0)
    assert found["recall_against_control_young"].mean == pytest.approx(0.0)
    assert found["recall_against_control_gained_with_age"].mean == pytest.approx(-1.0)
    assert found["word_loss_against_control_gained_with_age"].mean > 1.0
    assert found["norm_growth_exponent"].mean == pytest.approx(0.5, abs=0.05)
    assert found["topic_excess_nats_at_64"].mean == pytest.approx(1.0)
    assert found["topic_half_life_positions_at_64"].mean == config.plan.topic_bin
    forgetful.measures[0].save(tmp_path)
    again = ViewMeasures.load(tmp_path)
    assert again.probes == forgetful.measures[0].probes and again.topics is not None
    assert numpy.array_equal(again.remembered, forgetful.measures[0].remembered)


def test_the_sentence_about_the_norm_follows_from_its_interval() -> None:
    def said(low: float, high: float) -> str:
        own = {"norm_growth_exponent": Estimate(mean=(low + high) / 2, low=low, high=high, seeds=3)}
        return equilibrium("x", own)

    assert "has an equilibrium" in said(-0.01, 0.02)
    assert "keeps growing" in said(0.2, 0.3)
    assert "still shrinks" in said(-0.4, -0.3)
    assert "is open" in said(-0.2, 0.3)
    assert equilibrium("x", {}) == ""
