"""The gibberish experiment: what each suspect does to a model, and sentences that follow from planted numbers."""

from __future__ import annotations

import dataclasses
import math
from itertools import pairwise

import numpy
import pytest
import torch

from backbones.moshi import ttt_layers
from experiments.endless.measures import ViewMeasures
from experiments.endless.results import ViewResult
from experiments.endless.streaming import stream_logits
from experiments.fact_streams.configuration import ModelSizes
from experiments.fact_streams.generate import draw_streams
from experiments.fact_streams.measures import StreamMeasures
from experiments.fact_streams.module import FactStreamModule, text_logits
from experiments.fact_streams.mounted_models import build_with_ttt_on_top
from experiments.gibberish.arm import long_streams, measure
from experiments.gibberish.configuration import EVERYTHING, SOUND, SUSPECTS, GibberishExperiment, SuspectView
from experiments.gibberish.models import LeakyStreamModule, lose_pinned_positions
from experiments.gibberish.report import duration, parent_metrics, sentence
from experiments.gibberish.results import cure_ladder, damage, find_suspects, old, onset_position
from experiments.recipes.gibberish import gibberish


@pytest.fixture(scope="module")
def smoke() -> GibberishExperiment:
    return gibberish(scale="smoke", seed=0)


def _view(experiment: GibberishExperiment, name: str) -> SuspectView:
    [view] = [view for view in experiment.views if view.name == name]
    return view


@pytest.mark.parametrize("scale", ["smoke", "cpu", "gpu", "full"])
def test_every_suspect_stands_alone_and_every_cure_takes_one_away(scale: str) -> None:
    experiment = gibberish(scale=scale, seed=3)  # pyright: ignore[reportArgumentType]
    by_suspects = {view.suspects: view for view in experiment.views if view.age_cure in (None, "decay")}
    assert {(suspect,) for suspect in SUSPECTS} <= set(by_suspects)
    for suspects, view in by_suspects.items():
        assert view.ttt is not None
        assert (view.ttt.precision == "bf16") == ("bf16" in suspects)
        assert (view.ttt.inner_decay == 0) == ("age" in suspects)
        assert view.wraps == ("wrap" in suspects)
        assert (view.training == "leaky") == ("leak" in suspects)
    assert _view(experiment, EVERYTHING).suspects == SUSPECTS
    assert experiment.positions % experiment.tokens_per_call == 0


def test_an_hour_is_streamed_at_scale_cpu_and_3750_updates_lie_inside() -> None:
    experiment = gibberish(scale="cpu", seed=0)
    assert experiment.minutes(experiment.positions) == pytest.approx(60, abs=0.5)
    assert 3750 * experiment.ttt.mini_batch_size < experiment.old_from


def test_what_cannot_be_told_apart_or_does_not_exist_is_refused(smoke: GibberishExperiment) -> None:
    with pytest.raises(ValueError, match="must wrap where training ended"):
        dataclasses.replace(smoke, ring_positions=2 * smoke.ring_positions)
    with pytest.raises(ValueError, match="nothing for the ring to overwrite"):
        dataclasses.replace(smoke, model=dataclasses.replace(smoke.model, pinned=0))
    with pytest.raises(ValueError, match="has the leak if"):
        dataclasses.replace(_view(smoke, "leak"), training="causal")
    with pytest.raises(ValueError, match="a cure of it"):
        dataclasses.replace(_view(smoke, "age"), age_cure="decay")
    with pytest.raises(ValueError, match="no arm 'sound'"):
        smoke.of_arm(SOUND)


def test_the_wrap_changes_nothing_before_the_ring_is_full_and_is_a_model_without_pins_behind_it() -> None:
    model = ModelSizes(dim=16, num_heads=2, num_layers=2, context=4, pinned=2)
    experiment = gibberish(scale="smoke", seed=0)
    ttt = dataclasses.replace(experiment.ttt, base_lr=0.0)  # TTT would carry the difference on
    lm = build_with_ttt_on_top(model, experiment.stream, 0, ttt).double().eval()
    unpinned = build_with_ttt_on_top(dataclasses.replace(model, pinned=0), experiment.stream, 0, ttt).double().eval()
    unpinned.load_state_dict(lm.state_dict())
    codes = draw_streams(experiment.stream, 2, 64, (1,)).codes
    pinned = stream_logits(lm, codes, 16).logits
    without = stream_logits(unpinned, codes, 16).logits

    def wrap(position: int) -> None:
        if position == 32:
            lose_pinned_positions(lm)

    wrapped = stream_logits(lm, codes, 16, before_call=wrap).logits
    assert torch.equal(wrapped[:, :32], pinned[:, :32])
    torch.testing.assert_close(wrapped[:, 32:], without[:, 32:], rtol=0, atol=1e-9)
    assert (wrapped[:, 32:] - pinned[:, 32:]).abs().amax(dim=(0, 2)).min() > 1e-6


def test_the_leaky_training_reads_ahead_and_the_causal_one_does_not(smoke: GibberishExperiment) -> None:
    """Both see the first loss that their form of the same model gives."""
    batch = draw_streams(smoke.stream, 4, 16, (2,))
    losses = {}
    for kind in (FactStreamModule, LeakyStreamModule):
        lm = build_with_ttt_on_top(smoke.model, smoke.stream, 0, smoke.ttt)
        module = kind(lm, smoke.stream, smoke.training)
        seen: list[torch.Tensor] = []
        module.manual_backward = lambda loss, seen=seen: seen.append(loss.detach())  # type: ignore[method-assign]
        module.backward_batch(batch)
        plain = text_logits(lm, batch.codes)
        assert torch.equal(plain, text_logits(lm, batch.codes)) and ttt_layers(lm)
        losses[kind] = float(seen[0])
    assert losses[FactStreamModule] != pytest.approx(losses[LeakyStreamModule], abs=1e-6)


def test_views_are_measured_in_the_same_places_and_age_shows_in_the_norm(smoke: GibberishExperiment) -> None:
    lm = build_with_ttt_on_top(smoke.model, smoke.stream, 0, smoke.ttt)
    weights = {name: tensor.clone() for name, tensor in lm.state_dict().items()}
    streams = long_streams(smoke)
    sound, age, wrap = (measure(smoke, _view(smoke, name), weights, streams) for name in (SOUND, "age", "wrap"))
    assert numpy.array_equal(sound.wanted, age.wanted) and sound.wanted.sum() > 0
    assert age.probes[-1].inner_norm > 2 * sound.probes[-1].inner_norm
    before_the_wrap = smoke.position_edges.index(smoke.ring_positions)
    assert numpy.array_equal(
        sound.streams.word_loss_sums[:, :before_the_wrap], wrap.streams.word_loss_sums[:, :before_the_wrap]
    )
    assert not numpy.array_equal(sound.streams.word_loss_sums, wrap.streams.word_loss_sums)


# ------------------------------------------------------------------------------------------------ planted measures

STREAMS, SEEDS = 4, 3


def planted(
    experiment: GibberishExperiment, word_nats: dict[str, float], recall: dict[str, float], noise: float = 0.01,
    onset: int = 0,
) -> dict[str, ViewResult]:  # fmt: skip
    """Views of three seeds with known word loss and recall from position `onset` on, and the sound ones before it."""
    views = {}
    buckets = list(pairwise(experiment.position_edges))
    for view in experiment.views:
        measures = []
        for seed in range(SEEDS):
            spread = numpy.random.default_rng([seed, len(view.name)]).normal(0, noise)
            is_behind = numpy.array([first >= onset for first, _ in buckets])
            nats = numpy.where(is_behind, word_nats.get(view.name, 0.8) + spread, 0.8)
            share = numpy.where(is_behind, recall.get(view.name, 0.5) + spread, 0.5)
            counts = numpy.full((STREAMS, len(buckets)), 100.0)
            empty = numpy.zeros((STREAMS, 1))
            measures.append(
                ViewMeasures(
                    streams=StreamMeasures(
                        position_edges=experiment.position_edges, distance_edges=(0, 16), word_loss_sums=counts * nats,
                        legal_sums=counts, word_counts=counts, excess_sums=counts * (nats - 0.8), recalled=empty,
                        asked=empty, answer_loss_sums=empty, near_recalled=counts, near_asked=counts,
                        near_loss_sums=counts,
                    ),
                    remembered=counts * share, wanted=counts, probes=(), topics=None,
                )
            )  # fmt: skip
        views[view.name] = ViewResult(view=view, seeds=tuple(range(SEEDS)), measures=tuple(measures))
    return views


def test_verdicts_and_onsets_follow_from_the_numbers(smoke: GibberishExperiment) -> None:
    onset = smoke.position_edges[3]
    views = planted(
        smoke, {"leak": 2.8, EVERYTHING: 3.0}, {"age": 0.1, "wrap-bf16-age": 0.1, "bf16-age": 0.1}, onset=onset
    )
    found = {each.suspect: each for each in find_suspects(smoke, views)}
    assert {name: each.verdict for name, each in found.items()} == {
        "wrap": "harmless", "bf16": "harmless", "age": "breaks", "leak": "breaks",
    }  # fmt: skip
    assert found["age"].onset_position == onset == found["leak"].onset_position
    assert math.isnan(found["bf16"].onset_position)
    assert found["age"].alone.recall.mean == pytest.approx(-0.4, abs=0.03)
    assert found["age"].in_company is not None and found["age"].in_company.recall.mean == pytest.approx(-0.4, abs=0.03)
    company = found["leak"].in_company
    assert company is not None and company.word_loss.mean == pytest.approx(2.2, abs=0.1)


def test_a_suspect_whose_seeds_disagree_is_left_open(smoke: GibberishExperiment) -> None:
    views = planted(smoke, {}, {"bf16": 0.46}, noise=0.05)
    found = {each.suspect: each for each in find_suspects(smoke, views)}
    assert found["bf16"].verdict == "open" and "the seeds do not tell" in sentence(smoke, found["bf16"])


def test_damage_that_heals_has_no_onset(smoke: GibberishExperiment) -> None:
    views = planted(smoke, {"wrap": 1.5}, {})
    for measures in views["wrap"].measures:
        measures.streams.word_loss_sums[:, -1] = 80.0
    assert math.isnan(onset_position(smoke, views["wrap"], views[SOUND]))
    assert damage(views["wrap"], views[SOUND], *old(smoke)).word_loss.mean == pytest.approx(0.0, abs=0.02)


def test_sentences_and_metrics_say_the_same(smoke: GibberishExperiment) -> None:
    onset = smoke.position_edges[2]
    views = planted(smoke, {}, {"age": 0.1}, onset=onset)
    suspects = find_suspects(smoke, views)
    told = {each.suspect: sentence(smoke, each) for each in suspects}
    since = duration(onset / 12.5)
    assert told["age"].startswith(f"A state that never forgets breaks speech by itself from {since} on")
    assert told["bf16"].startswith("A BF16 state is harmless by itself: words")
    against = {name: damage(view, views[SOUND], *old(smoke)) for name, view in views.items()}
    metrics = parent_metrics(smoke, against, suspects)
    assert metrics["gibberish_age/onset_minutes"] == pytest.approx(onset / 12.5 / 60)
    assert "gibberish_bf16/onset_minutes" not in metrics
    assert metrics["gibberish_age/recall_against_sound_high"] < -0.3
    assert metrics["gibberish_bf16/recall_against_sound_low"] > -0.3


def test_the_ladder_goes_from_everything_to_sound_one_cure_at_a_time(smoke: GibberishExperiment) -> None:
    views = planted(smoke, {}, {})
    names = [name for name, _ in cure_ladder(views)]
    assert names == [EVERYTHING, "wrap-bf16-age", "bf16-age", "bf16", SOUND]
    sizes = [len(_view(smoke, name).suspects) for name in names]
    assert sizes == [4, 3, 2, 1, 0]


@pytest.mark.parametrize(("seconds", "said"), [(0, "the start"), (2.56, "2.6 s"), (300, "5 min")])
def test_durations_are_told_in_the_unit_that_fits(seconds: float, said: str) -> None:
    assert duration(seconds) == said
