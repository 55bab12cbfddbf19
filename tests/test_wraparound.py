"""The wraparound experiment: its views against slower ones, its measures by hand, its signatures on planted results."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

import numpy
import pytest
import torch
from moshi.modules.transformer import KVCacheResult, RingKVCache
from torch import Tensor

from experiments.fact_streams import reading
from experiments.fact_streams.generate import FactStreams, draw_streams
from experiments.fact_streams.measures import StreamMeasures, measure_streams, words_before
from experiments.fact_streams.spec import FactStreamSpec
from experiments.harness.estimates import estimate, share_of_seeds
from experiments.harness.study import SCALES
from experiments.recipes import RECIPES
from experiments.wraparound import viewing
from experiments.wraparound.configuration import Training, View, WraparoundExperiment
from experiments.wraparound.measuring import measure_view, view_streams
from experiments.wraparound.models import build_trained, build_viewed
from experiments.wraparound.results import ViewResult
from experiments.wraparound.signatures import (
    SYMPTOMS,
    Answer,
    Observation,
    Symptom,
    judge,
    observe,
)

KNOWN_TEXT, LOCAL_LOSS, NEAR_RECALL = SYMPTOMS
JUDGED = {f"{view}-{length}" for view in ("ring", "sinks", "full") for length in ("inside", "past")} | {"ttt-past"}
POSITIONS = 37
"""More than four contexts of eight, and no multiple of anything."""


def smoke() -> WraparoundExperiment:
    config = RECIPES["kv-wraparound"].configure(scale="smoke", seed=4)
    assert isinstance(config, WraparoundExperiment)
    return config


def streams(count: int = 3, positions: int = POSITIONS) -> FactStreams:
    return draw_streams(smoke().stream, count, positions, (9,))


def weights_of(training: Training) -> dict[str, Tensor]:
    lm = build_trained(smoke(), training)
    for name, parameter in lm.named_parameters():
        if name.endswith("alpha"):  # a closed gate would hide what stands behind it
            torch.nn.init.constant_(parameter, 0.3)
    return lm.state_dict()


@pytest.mark.parametrize("scale", SCALES)
def test_every_scale_is_a_whole_experiment_with_every_arm_of_the_protocol(scale: str) -> None:
    config = RECIPES["kv-wraparound"].configure(scale=scale, seed=1)
    assert isinstance(config, WraparoundExperiment)
    assert config.view_plan.positions >= 16 * config.model.context
    assert {view.kind for view in config.views} == {
        "batched", "streamed", "recomputed", "first_positions_hidden", "free_running", "ttt_state_reset",
    }  # fmt: skip
    assert {training.length for training in config.trainings} == {"inside", "past"}
    for training in config.trainings if scale != "smoke" else ():
        # What the explanations are judged by needs six seeds to decide anything (see the test of answers).
        is_judged = any(training.name == view.training for view in config.views if view.name in JUDGED)
        assert len(config.seeds_of(training.name)) >= (6 if is_judged else 3)
    assert config.seeds_of("mechanics") == config.seeds[:1]
    with torch.device("meta"):
        for training in config.trainings if scale in ("smoke", "cpu") else ():
            build_trained(config, training)


@pytest.mark.parametrize(
    "name", ["attention-trained-inside", "sinks-trained-past", "ttt-trained-past", "ttt-and-window-trained-past"]
)
def test_streaming_is_the_batched_model_before_at_and_after_the_wrap(name: str) -> None:
    experiment = smoke()
    training = experiment.training(name)
    lm = build_viewed(experiment, training, training.window, training.sinks, weights_of(training))
    batched = reading.batched_logits(lm, streams().codes)
    streamed = reading.streamed_logits(lm, streams().codes)
    torch.testing.assert_close(streamed, batched, rtol=0, atol=1e-5 * float(batched.abs().max()))


def test_a_recomputed_position_is_a_fresh_model_on_the_last_positions_alone() -> None:
    experiment = smoke()
    training, window = experiment.training("attention-trained-inside"), experiment.model.context
    lm = build_viewed(experiment, training, window, 0, weights_of(training))
    recomputed = viewing.recomputed_logits(lm, streams().codes, window, has_start_token=False)
    inputs = reading.model_inputs(lm, streams().codes)
    for position in (0, 5, window - 1, window, 2 * window + 1, POSITIONS - 1):
        alone = lm.forward_text(inputs[:, :, max(0, position - window + 1) : position + 1])[1][:, 0, -1]
        torch.testing.assert_close(recomputed[:, position], alone, rtol=1e-5, atol=1e-5)
    started = viewing.recomputed_logits(lm, streams().codes, window)
    fresh = reading.streamed_logits(lm, streams().codes[:, :, POSITIONS - window :])  # begins with the start token
    torch.testing.assert_close(started[:, -1], fresh[:, -1], rtol=1e-5, atol=1e-5)
    plain = reading.batched_logits(lm, streams().codes)
    assert torch.allclose(plain[:, :window], recomputed[:, :window], atol=1e-5)
    assert not torch.allclose(plain[:, window:], recomputed[:, window:], atol=1e-3)


def test_positions_hidden_early_are_seen_until_then_and_never_after() -> None:
    experiment = smoke()
    training, window = experiment.training("attention-trained-inside"), experiment.model.context
    lm = build_viewed(experiment, training, window, 0, weights_of(training))
    inside = streams().codes[:, :, :window]
    plain = reading.batched_logits(lm, inside)
    hidden = viewing.first_positions_hidden_logits(lm, inside, hidden=2, hides_from=4)
    torch.testing.assert_close(hidden[:, :4], plain[:, :4], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(hidden[:, 4:], plain[:, 4:], atol=1e-3)
    nothing = viewing.first_positions_hidden_logits(lm, inside, hidden=0, hides_from=4)
    torch.testing.assert_close(nothing, plain, rtol=1e-5, atol=1e-5)


def test_resetting_the_ttt_state_starts_the_layer_anew_and_leaves_attention_alone() -> None:
    experiment = smoke()
    training = experiment.training("ttt-trained-past")
    weights = weights_of(training)
    lm = build_viewed(experiment, training, training.window, 0, weights)
    codes = streams().codes
    never = viewing.ttt_state_reset_logits(lm, codes, every=10_000)
    torch.testing.assert_close(never, reading.streamed_logits(lm, codes))
    every = viewing.ttt_state_reset_logits(lm, codes, every=16)
    torch.testing.assert_close(every[:, :16], never[:, :16])
    assert not torch.allclose(every[:, 16:], never[:, 16:], atol=1e-3)


def test_what_the_model_says_itself_is_what_it_then_reads() -> None:
    experiment = smoke()
    training = experiment.training("attention-trained-inside")
    lm = build_viewed(experiment, training, training.window, 0, weights_of(training))
    heard = streams()
    logits, said = reading.free_running(lm, heard.codes[:, 1:], seed=2)
    assert said.shape == heard.text.shape
    own = heard.codes.clone()
    own[:, 0] = said
    forced = reading.batched_logits(lm, own)
    torch.testing.assert_close(logits, forced, rtol=0, atol=1e-5 * float(forced.abs().max()))
    assert torch.equal(said, reading.free_running(lm, heard.codes[:, 1:], seed=2)[1])
    assert not torch.equal(said, reading.free_running(lm, heard.codes[:, 1:], seed=3)[1])


def test_words_before_skip_answers_and_tokens_that_are_no_words() -> None:
    text = torch.tensor([[1, 2, 9, 3, 0, 1]])
    is_answer = torch.tensor([[False, False, True, False, False, False]])
    before, is_known = words_before(text, is_answer, words=4)
    assert is_known.tolist() == [[False, False, True, True, True, True]]
    assert before[0, 2:].tolist() == [[1, 2], [1, 2], [2, 3], [3, 0]]
    before, _ = words_before(torch.tensor([[1, 7, 2, 3]]), torch.zeros(1, 4, dtype=torch.bool), words=4)
    assert before[0, 3].tolist() == [1, 2]  # 7 was said where a word belongs


def test_measures_of_a_model_that_knows_the_grammar_and_of_one_that_knows_nothing() -> None:
    spec, drawn = FactStreamSpec(keys=4, values=4), draw_streams(FactStreamSpec(keys=4, values=4), 40, 128, (2,))
    before, _ = words_before(drawn.text, drawn.is_answer, spec.words)
    allowed = torch.from_numpy(spec.successors)[before[..., 0], before[..., 1]]
    knowing = torch.full((40, 128, spec.text_tokens), -1e9).scatter(
        2, allowed, torch.log(torch.tensor([0.7, 0.2, 0.1])).expand_as(allowed)
    )
    knowing[drawn.is_answer] = torch.nn.functional.one_hot(drawn.text, spec.text_tokens).float()[drawn.is_answer] * 50
    edges = (0, 16, 64, 128), (0, 8, 128)
    measured = measure_streams(knowing, None, drawn, spec, *edges, near=5)
    assert measured.word_loss_between(16, 128) == pytest.approx(spec.word_entropy_nats, abs=0.03)
    assert measured.legal_between(0, 128) == pytest.approx(1.0)
    assert measured.recall_between(0, 128) == 1.0
    assert measured.excess_between(0, 128) == pytest.approx(0.0, abs=1e-5)  # whatever words were drawn
    nothing = measure_streams(torch.zeros_like(knowing), None, drawn, spec, *edges, near=5)
    assert nothing.word_loss_between(0, 128) == pytest.approx(math.log(spec.text_tokens), rel=1e-5)
    assert nothing.legal_between(0, 128) == pytest.approx(3 / spec.text_tokens, rel=1e-5)
    assert nothing.recall_between(0, 128) < 0.3
    metrics = nothing.metrics()
    assert metrics["loss_by_position/00016_00064"] == pytest.approx(math.log(spec.text_tokens), rel=1e-5)
    asked = metrics["facts_by_distance/00000_00008"] + metrics["facts_by_distance/00008_00128"]
    assert asked == drawn.is_answer.sum()


def test_saved_measures_are_the_measures(tmp_path: Path) -> None:
    logits = torch.randn(3, POSITIONS, smoke().stream.text_tokens)
    measured = measure_streams(logits, None, streams(), smoke().stream, (0, 8, 37), (0, 8, 37), 4)
    measured.save(tmp_path / "measures.npz")
    loaded = StreamMeasures.load(tmp_path / "measures.npz")
    assert loaded.position_edges == (0, 8, 37)
    numpy.testing.assert_array_equal(loaded.word_loss_sums, measured.word_loss_sums)
    assert loaded.metrics() == measured.metrics()


def test_the_interval_of_a_share_of_seeds_is_clopper_and_pearsons() -> None:
    assert share_of_seeds([True] * 8).low == pytest.approx(0.025 ** (1 / 8))
    assert (share_of_seeds([]).low, share_of_seeds([]).high) == (0.0, 1.0)


def test_the_interval_over_seeds_is_students() -> None:
    found = estimate([1.0, 2.0, 3.0])
    assert found.mean == 2.0
    assert found.high - found.mean == pytest.approx(4.302653 / math.sqrt(3), rel=1e-5)
    assert math.isnan(estimate([1.0]).low)


@dataclass(frozen=True, kw_only=True)
class Plant:
    """Excess loss of a view in [C/2, C), [C, 2C) and beyond 8 C; recall of distant facts; streaming's disagreement."""

    before: float = 0.0
    after: float = 0.0
    far: float = 0.0
    legal_far: float = 0.9
    distant: float = 0.9
    disagreement: float = 1e-6


def planted(plants: dict[str, Plant], seeds: int = 8) -> dict[str, ViewResult]:
    """Views "NAME-inside" of so many seeds."""
    experiment = smoke()
    context, plan = experiment.model.context, experiment.view_plan

    def measures(edges: tuple[int, ...], excess: list[float], legal: float, plant: Plant, seed: int) -> StreamMeasures:
        shape = (2, len(edges) - 1)
        asked = numpy.full((2, len(plan.distance_edges) - 1), 10.0)
        recalls = [0.95 if end <= context else plant.distant for end in plan.distance_edges[1:]]
        by_position = numpy.array([excess, excess]) + 0.001 * seed
        return StreamMeasures(
            position_edges=edges, distance_edges=plan.distance_edges, word_loss_sums=by_position,
            word_counts=numpy.ones(shape), excess_sums=by_position, legal_sums=numpy.full(shape, legal),
            recalled=asked * numpy.array(recalls), asked=asked, answer_loss_sums=asked,
            near_recalled=numpy.full(shape, 0.95), near_asked=numpy.ones(shape), near_loss_sums=numpy.full(shape, 0.1),
        )  # fmt: skip

    results = {}
    for name, plant in plants.items():
        onset = [
            plant.before if context // 2 <= first < context else plant.after if first >= context else 0.0
            for first in plan.onset_edges[:-1]
        ]
        long = [plant.far] * (len(plan.position_edges) - 1)
        view = View(name=f"{name}-inside", training="attention-trained-inside", kind="batched", window=context)
        agreement = {"agreement/streamed_against_batched_relative_difference": plant.disagreement}
        results[view.name] = ViewResult(
            view=view, seeds=tuple(range(seeds)),
            onset=tuple(measures(plan.onset_edges, onset, 0.9, plant, seed) for seed in range(seeds)),
            long=tuple(measures(plan.position_edges, long, plant.legal_far, plant, seed) for seed in range(seeds)),
            metrics=(agreement,) * seeds,
        )  # fmt: skip
    return results


FLAT, HURT = Plant(), Plant(after=0.3, far=0.3)
HURT_EARLY = Plant(before=0.3, after=0.3, far=0.3)
EVERYTHING_FLAT = dict.fromkeys(
    ("ring", "sinks", "recomputed", "half-the-window", "hidden", "full", "free", "ttt", "ttt-reset"), FLAT
)


def explained(plants: dict[str, Plant], symptom: Symptom = LOCAL_LOSS) -> dict[str, str]:
    observations = observe(smoke(), planted(EVERYTHING_FLAT | plants), "inside", symptom)
    return {verdict.explanation: verdict.result for verdict in judge(observations)}


def those_that_match(plants: dict[str, Plant], symptom: Symptom = LOCAL_LOSS) -> set[str]:
    return {explanation for explanation, result in explained(plants, symptom).items() if result == "matches"}


def test_where_nothing_was_planted_nothing_matches() -> None:
    assert set(explained({}).values()) == {"contradicted"}


def test_planted_sink_eviction_is_told_from_every_other_explanation() -> None:
    plants = {"ring": HURT, "half-the-window": HURT_EARLY, "hidden": HURT_EARLY}
    assert those_that_match(plants) == {"sink eviction"}
    assert "undecided" not in explained(plants).values()
    assert those_that_match(plants, NEAR_RECALL) == set()  # nothing was planted there
    assert those_that_match(plants, KNOWN_TEXT) == {"sink eviction"}


def test_planted_corruption_of_the_cache_is_told_from_every_other_explanation() -> None:
    broken = dataclasses.replace(HURT, disagreement=0.5)
    plants = {"ring": broken, "sinks": HURT, "half-the-window": HURT_EARLY}
    assert those_that_match(plants) == {"cache corruption"}


def test_planted_reading_beyond_training_is_told_from_every_other_explanation() -> None:
    plants = {"ring": HURT, "sinks": HURT, "half-the-window": HURT, "full": HURT}
    assert those_that_match(plants) == {"longer than trained"}


def test_planted_loss_of_memory_is_seen_alone_and_beside_another_breakage() -> None:
    assert those_that_match({"ring": Plant(distant=0.2)}) == {"lost information"}
    both = {"ring": Plant(after=0.3, far=0.3, distant=0.2), "half-the-window": HURT_EARLY, "hidden": HURT_EARLY}
    assert those_that_match(both) == {"sink eviction", "lost information"}


def test_planted_exposure_to_its_own_words_is_seen() -> None:
    assert those_that_match({"free": Plant(legal_far=0.6)}) == {"exposure to its own output"}


def test_planted_age_of_the_ttt_state_is_seen_and_told_from_what_a_reset_does_not_cure() -> None:
    assert those_that_match({"ttt": Plant(far=0.3)}) == {"age of the TTT state"}
    assert those_that_match({"ttt": Plant(far=0.3), "ttt-reset": Plant(far=0.3)}) == set()


def test_a_view_that_was_worse_from_the_first_is_not_blamed_for_it() -> None:
    worse_throughout = Plant(before=1.1, after=1.1, far=1.1)
    plants = {"ring": HURT, "half-the-window": HURT, "full": worse_throughout, "sinks": Plant(before=-0.3)}
    found = {row.column: row for row in observe(smoke(), planted(EVERYTHING_FLAT | plants), "inside", LOCAL_LOSS)}
    assert found["full_attention_suffers"].answer == Answer.NO
    assert found["pinned_cures"].median == pytest.approx(0.0, abs=0.05)  # it fell by as much as the ring's


def test_an_answer_is_that_of_most_seeds_and_of_no_fewer_than_six() -> None:
    def answer(*values: float) -> Answer:
        return Observation(column="breaks_at_wrap", values=dict(enumerate(values)), yes_above=0.02).answer

    assert answer(5.0) == answer(*[5.0] * 5) == Answer.OPEN
    assert answer(*[5.0] * 6) == Answer.YES
    assert answer(*[0.0] * 6) == Answer.NO
    assert answer(0.021, *[900.0] * 7) == Answer.YES  # however far they are apart
    assert answer(*[5.0] * 4, *[0.0] * 4) == Answer.OPEN
    alone = Observation(column="breaks_at_wrap", values={0: 5.0}, yes_above=0.02)
    assert {verdict.result for verdict in judge([alone])} == {"undecided"}


def test_damage_in_some_seeds_is_followed_in_those_alone() -> None:
    views = planted(EVERYTHING_FLAT | {"ring": HURT})
    ring, flat = views["ring-inside"], planted({"ring": FLAT})["ring-inside"]
    mixed = dataclasses.replace(ring, onset=(*flat.onset[:1], *ring.onset[1:]))
    found = {row.column: row for row in observe(smoke(), views | {"ring-inside": mixed}, "inside", LOCAL_LOSS)}
    assert found["breaks_at_wrap"].share.count == 7
    assert found["pinned_cures"].values.keys() == set(range(1, 8))
    assert found["pinned_cures"].answer == Answer.YES


def test_a_ring_that_gives_wrong_positions_shows_in_every_column_that_is_to_see_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    complete = RingKVCache.complete

    def off_by_one_past_the_wrap(ring: RingKVCache, k: Tensor, v: Tensor, exec_mask: Tensor) -> KVCacheResult:
        kept = complete(ring, k, v, exec_mask)
        wrong = (kept.positions - 1).clamp_min(0)
        return kept._replace(positions=torch.where(ring.end_offset.view(-1, 1) > ring.capacity, wrong, kept.positions))

    experiment = smoke()
    training, context = experiment.training("attention-trained-inside"), experiment.model.context
    weights = weights_of(training)
    for name, window in (("ring-inside", context), ("half-the-window-inside", context // 2)):
        [view] = [view for view in experiment.views if view.name == name]
        lm = build_viewed(experiment, training, view.window, view.sinks, weights)
        right = measure_view(experiment, view, lm, view_streams(experiment))
        with monkeypatch.context() as patched:
            patched.setattr(RingKVCache, "complete", off_by_one_past_the_wrap)
            broken = measure_view(experiment, view, lm, view_streams(experiment))
        assert right.agreement is not None and broken.agreement is not None
        assert right.agreement < 1e-5 < 1e-3 < broken.agreement
        after, before = (window, 2 * window), (0, window)
        assert broken.onset.excess_between(*before) == right.onset.excess_between(*before)
        assert broken.onset.excess_between(*after) != right.onset.excess_between(*after)


def test_arms_that_cannot_be_are_refused() -> None:
    config = smoke()
    with pytest.raises(ValueError, match="has no arm 'nobody'"):
        config.of_arm("nobody")
    with pytest.raises(ValueError, match="trains its models from scratch"):
        config.with_weights("0123")
    with pytest.raises(ValueError, match="view 'lost' is of training 'nobody'"):
        dataclasses.replace(config, views=(View(name="lost", training="nobody", kind="batched", window=8),))
    with pytest.raises(ValueError, match="'inside' training reads 32 positions, more than the context of 8"):
        dataclasses.replace(config, inside=config.past)
