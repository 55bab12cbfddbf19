"""The wraparound experiment: its views against slower ones, its measures by hand, its signatures on planted results."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy
import pytest
import torch
from torch import Tensor

from experiments.fact_streams import reading
from experiments.fact_streams.generate import FactStreams, draw_streams
from experiments.fact_streams.measures import StreamMeasures, measure_streams, words_before
from experiments.fact_streams.spec import FactStreamSpec
from experiments.harness.estimates import estimate
from experiments.harness.study import SCALES
from experiments.recipes import RECIPES
from experiments.wraparound import viewing
from experiments.wraparound.configuration import Training, View, WraparoundExperiment
from experiments.wraparound.models import build_trained, build_viewed
from experiments.wraparound.results import ViewResult
from experiments.wraparound.signatures import (
    EXPLANATIONS,
    SYMPTOMS,
    Answer,
    Observation,
    Symptom,
    judge,
    observe,
)

LOCAL_LOSS, NEAR_RECALL = SYMPTOMS
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
    assert len(config.seeds) >= (2 if scale == "smoke" else 3)
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
    logits, said = reading.free_running(lm, heard, seed=2)
    assert said.shape == heard.text.shape
    own = heard.codes.clone()
    own[:, 0] = said
    forced = reading.batched_logits(lm, own)
    torch.testing.assert_close(logits, forced, rtol=0, atol=1e-5 * float(forced.abs().max()))
    assert torch.equal(said, reading.free_running(lm, heard, seed=2)[1])
    assert not torch.equal(said, reading.free_running(lm, heard, seed=3)[1])


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


def test_the_interval_over_seeds_is_students() -> None:
    found = estimate([1.0, 2.0, 3.0])
    assert found.mean == 2.0
    assert found.high - found.mean == pytest.approx(4.302653 / math.sqrt(3), rel=1e-5)
    assert math.isnan(estimate([1.0]).low)


def planted(
    experiment: WraparoundExperiment, loss: dict[str, tuple[float, float, float]], recall: float
) -> dict[str, ViewResult]:
    """Views "NAME-inside" of three seeds with the given losses before C / 2, from there to C, and after."""
    context, plan = experiment.model.context, experiment.view_plan
    results = {}
    for name, (before, half, after) in loss.items():
        means = [
            before if end <= context // 2 else half if end <= context else after for end in plan.position_edges[1:]
        ]
        recalls = [0.95 if end <= context else recall for end in plan.distance_edges[1:]]
        measures = []
        for seed in range(3):
            ones = numpy.ones((2, len(means)))
            asked = numpy.full((2, len(recalls)), 10.0)
            measures.append(
                StreamMeasures(
                    position_edges=plan.position_edges, distance_edges=plan.distance_edges,
                    word_loss_sums=numpy.array([means, means]) + 0.001 * seed, legal_sums=0.9 * ones, word_counts=ones,
                    recalled=asked * numpy.array(recalls), asked=asked, answer_loss_sums=asked,
                    near_recalled=0.95 * ones, near_asked=ones,
                )
            )  # fmt: skip
        view = View(name=f"{name}-inside", training="attention-trained-inside", kind="batched", window=context)
        agreement = {"agreement/streamed_against_batched_relative_difference": 1e-6}
        results[view.name] = ViewResult(
            view=view, seeds=(0, 1, 2), measures=tuple(measures), metrics=(agreement, agreement, agreement)
        )
    return results


def explained(views: dict[str, ViewResult], symptom: Symptom = LOCAL_LOSS) -> dict[str, str]:
    observations = observe(smoke(), views, "inside", symptom)
    return {verdict.explanation: verdict.result for verdict in judge(observations)}


FLAT, HURT = (1.0, 1.0, 1.0), (1.0, 1.0, 1.3)
HURT_EARLY = (1.0, 1.3, 1.3)


def test_planted_sink_eviction_is_told_from_every_other_explanation() -> None:
    views = planted(
        smoke(),
        {
            "ring": HURT, "sinks": FLAT, "recomputed": FLAT, "half-the-window": HURT_EARLY, "hidden": HURT_EARLY,
            "full": FLAT, "free": FLAT,
        },
        recall=0.9,
    )  # fmt: skip
    assert explained(views) == {
        "cache corruption": "contradicted", "lost information": "contradicted", "sink eviction": "matches",
        "longer than trained": "contradicted", "exposure to its own output": "contradicted",
    }  # fmt: skip
    assert "matches" not in explained(views, NEAR_RECALL).values()  # nothing was planted there


def test_planted_loss_of_memory_is_told_from_every_other_explanation() -> None:
    names = ("ring", "sinks", "recomputed", "half-the-window", "hidden", "full", "free")
    verdicts = explained(planted(smoke(), dict.fromkeys(names, FLAT), recall=0.25))
    assert verdicts["lost information"] == "matches"
    assert {verdicts[name] for name in EXPLANATIONS if name != "lost information"} == {"contradicted"}


def test_planted_reading_beyond_training_is_told_from_every_other_explanation() -> None:
    views = planted(
        smoke(),
        {
            "ring": HURT, "sinks": HURT, "recomputed": FLAT, "half-the-window": HURT, "hidden": FLAT, "full": HURT,
            "free": FLAT,
        },
        recall=0.9,
    )  # fmt: skip
    verdicts = explained(views)
    assert verdicts["longer than trained"] == "matches"
    assert verdicts["sink eviction"] == verdicts["cache corruption"] == "contradicted"


def test_one_seed_decides_nothing() -> None:
    def answer(*values: float) -> Answer:
        return Observation(column="breaks_at_wrap", found=estimate(values), yes_above=0.02).answer

    assert answer(5.0) == Answer.OPEN
    assert answer(5.0, 5.1, 4.9) == Answer.YES
    assert answer(0.0, 0.001, -0.001) == Answer.NO
    assert answer(0.1, -0.1, 0.05) == Answer.OPEN
    alone = Observation(column="breaks_at_wrap", found=estimate([5.0]), yes_above=0.02)
    assert {verdict.result for verdict in judge([alone])} == {"undecided"}


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
