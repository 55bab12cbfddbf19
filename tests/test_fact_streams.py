"""Fact streams: what is stated, asked and answered, against a reader that follows the streams token by token."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from backbones.moshi import MoshiConfig, build_lm
from experiments.fact_streams.configuration import StreamStage, StreamTraining
from experiments.fact_streams.generate import FactStreams, draw_streams
from experiments.fact_streams.module import FactStreamData, FactStreamModule, text_logits, text_losses
from experiments.fact_streams.spec import ASK, FIRST_HEARD_VALUE, SILENCE, SUCCESSOR_SHARES, FactStreamSpec

SPEC = FactStreamSpec(keys=5, values=7, longest_distance=40)


def drawn(streams: int = 6, positions: int = 211) -> FactStreams:
    return draw_streams(SPEC, streams, positions, (3, 1))


def test_every_answer_is_the_value_last_stated_for_the_key_that_was_asked_for() -> None:
    streams, answers = drawn(), 0
    for row in range(len(streams)):
        text, keys, values = streams.codes[row].tolist()
        stated: dict[int, tuple[int, int]] = {}
        for t in range(len(text)):
            if t and values[t - 1] == ASK:
                value, where = stated.pop(keys[t - 1])
                assert text[t] == SPEC.first_value + value
                assert int(streams.distances[row, t]) == t - where
                answers += 1
            else:
                assert text[t] < SPEC.words
                assert int(streams.distances[row, t]) == 0
            if values[t] >= FIRST_HEARD_VALUE:
                assert keys[t] not in stated  # a key that waits for its question is not stated anew
                stated[keys[t]] = values[t] - FIRST_HEARD_VALUE, t
            assert (keys[t] == SILENCE) == (values[t] == SILENCE)
    assert answers > 100


def test_every_word_is_one_that_the_grammar_allows_and_as_often_as_it_says() -> None:
    streams = draw_streams(SPEC, 16, 1500, (8,))
    counts = [0, 0, 0]
    for row in range(len(streams)):
        words = streams.text[row][~streams.is_answer[row]].tolist()
        for older, newer, word in zip(words, words[1:], words[2:], strict=False):
            counts[SPEC.successors[older, newer].tolist().index(word)] += 1
    shares = [count / sum(counts) for count in counts]
    assert shares == pytest.approx(SUCCESSOR_SHARES, abs=0.01)
    entropy = -sum(share * math.log(share) for share in SUCCESSOR_SHARES)
    assert SPEC.word_entropy_nats == pytest.approx(entropy)


def test_distances_reach_from_the_shortest_to_the_longest_in_equal_shares_of_a_logarithm() -> None:
    spec = FactStreamSpec(keys=128, shortest_distance=4, longest_distance=256, event_share=0.5)
    distances = draw_streams(spec, 64, 3000, (1,)).distances
    found = distances[:, 1000:][distances[:, 1000:] > 0]
    assert int(found.min()) >= 4 and 256 <= int(found.max()) < 300
    octaves = torch.histc(torch.log2(found.float()), bins=6, min=2, max=8)
    # Waiting for its turn lengthens a distance by a position or two: only the first octave feels it.
    assert octaves[1:].min() / octaves.max() > 0.85 and octaves[0] / octaves.max() > 0.5


def test_the_same_seed_draws_the_same_streams_and_another_draws_others() -> None:
    again, other = drawn(), draw_streams(SPEC, 6, 211, (3, 2))
    assert torch.equal(drawn().codes, again.codes)
    assert not torch.equal(again.codes, other.codes)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"words": 2}, "words must be at least 3, got 2"),
        ({"values": 1}, "values must be at least 2, got 1"),
        ({"event_share": 1.0}, "event_share must be between 0 and 1, got 1.0"),
        ({"longest_distance": 3}, "got 3 and 3"),
    ],
)
def test_a_spec_that_no_stream_can_follow_is_refused(fields: dict[str, float], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        dataclasses.replace(FactStreamSpec(), **fields)


def test_no_streams_are_refused() -> None:
    with pytest.raises(ValueError, match="got 0 of 5"):
        draw_streams(SPEC, 0, 5, (1,))


def stream_training(**fields: object) -> StreamTraining:
    plan = StreamTraining(
        learning_rate=3e-3, ttt_learning_rate=3e-3, warmup_steps=2, validate_every_steps=30,
        stages=(
            StreamStage(positions=9, streams_per_step=4, steps=40, narrowed_window=3),
            StreamStage(positions=21, streams_per_step=2, steps=7),
        ),
    )  # fmt: skip
    return dataclasses.replace(plan, **fields)


def tiny_module(window: int | None = 8) -> FactStreamModule:
    config = MoshiConfig(
        dim=16, num_heads=2, num_layers=1, hidden_scale=2.0, context=window, n_q=2, dep_q=0, delays=(0, 0, 0),
        card=SPEC.heard_codes, text_card=SPEC.text_tokens, norm="rms_norm_f32", gating="silu",
        positional_embedding="rope",
        existing_text_padding_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    return FactStreamModule(build_lm(config), SPEC, stream_training())


def test_the_text_is_predicted_from_earlier_positions_alone() -> None:
    module, codes = tiny_module(), drawn(2, 19).codes
    logits = text_logits(module.lm, codes)
    changed = codes.clone()
    changed[:, :, 11] = 1
    after = text_logits(module.lm, changed)
    assert torch.equal(logits[:, :12], after[:, :12])
    assert not torch.allclose(logits[:, 12], after[:, 12])


def test_the_training_loss_weighs_answers_as_the_plan_says() -> None:
    module, batch = tiny_module(), drawn(3, 21)
    module.manual_backward = lambda loss: loss.backward()  # type: ignore[method-assign]
    logged = module.backward_batch(batch)
    losses = text_losses(text_logits(module.lm, batch.codes), batch.text)  # the window is narrowed now
    weights = 1.0 + 4.0 * batch.is_answer
    assert logged["train/loss"] == pytest.approx(float((losses * weights).sum().detach() / weights.sum()), rel=1e-5)
    assert logged["train/text_loss_nats_per_token"] == pytest.approx(float(losses.detach().mean()), rel=1e-5)


def test_a_stage_narrows_the_window_and_the_next_one_widens_it_again() -> None:
    module, data = tiny_module(), FactStreamData(SPEC, stream_training(), 5, lambda: 0)
    module.manual_backward = lambda loss: loss.backward()  # type: ignore[method-assign]
    attention = module.lm.transformer.layers[0].self_attn
    seen = []
    for step in (0, 39, 40):
        module.steps_done = step
        module.backward_batch(data.training_batch(step))
        seen.append(attention.context)
    assert seen == [3, 3, 8]


def test_a_step_reads_the_same_streams_whenever_it_is_asked_for() -> None:
    forward = FactStreamData(SPEC, stream_training(), 5, lambda: 0)
    in_order = [forward.training_batch(step) for step in range(47)]
    late = FactStreamData(SPEC, stream_training(), 5, lambda: 0)
    for step in (46, 3, 40, 39):
        assert torch.equal(late.training_batch(step).codes, in_order[step].codes)
    assert not torch.equal(in_order[0].codes, in_order[1].codes)
    assert in_order[0].codes.shape == (4, 3, 9) and in_order[40].codes.shape == (2, 3, 21)
    other_seed = FactStreamData(SPEC, stream_training(), 6, lambda: 0)
    assert not torch.equal(other_seed.training_batch(0).codes, in_order[0].codes)


@pytest.mark.parametrize(
    ("fields", "told"),
    [({"steps": 0}, "steps must be at least 1"), ({"shortest_distance": 7}, "below positions - 2 = 7")],
)  # fmt: skip
def test_a_stage_without_room_is_refused(fields: dict[str, int], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        StreamStage(**{"positions": 9, "streams_per_step": 1, "steps": 1} | fields)
