"""A conversation laid out in positions: whole turns, labels where the assistant speaks, recalls and their distances."""

from __future__ import annotations

import pytest
import soundfile
import torch
from conversation_fixtures import SPEC

from experiments.data.dataset import ConversationSet
from experiments.data.packing import default_speech_positions, pack
from experiments.data.synthetic import build_conversations


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ConversationSet:
    return build_conversations(SPEC, tmp_path_factory.mktemp("cache"), progress=False, processes=1)


def _tokens_at(dataset: ConversationSet, labels: torch.Tensor, position: int, count: int) -> str:
    """Text of the `count` labelled tokens before a position."""
    return dataset.tokenizer.decode(labels[position - count : position].tolist())


def _retold(dataset: ConversationSet, index: int) -> list[int]:
    """Ids of a conversation's own text, put together without `pack`."""
    tokenizer = dataset.tokenizer
    ids = [tokenizer.bos_id]
    for turn in dataset[index].turns:
        if turn.speaker == "user":
            ids += [tokenizer.user_id, -200]
        else:
            ids += [tokenizer.assistant_id, *tokenizer.encode(turn.text), tokenizer.eos_id]
    return ids


@pytest.mark.parametrize("mini_batch_size", [1, 4, 16])
def test_a_packed_conversation_is_whole_turns_in_order_then_padding(
    dataset: ConversationSet, mini_batch_size: int
) -> None:
    for index in range(len(dataset)):
        packed = pack(dataset[index], dataset, mini_batch_size=mini_batch_size)
        ids = packed.input_ids.tolist()
        expected = _retold(dataset, index)
        assert ids == expected[: len(ids) - packed.pad_count] + [dataset.tokenizer.pad_id] * packed.pad_count
        assert packed.length % mini_batch_size == 0 and packed.length <= SPEC.positions
        assert packed.pad_count < mini_batch_size
        if SPEC.positions % mini_batch_size == 0:
            assert packed.exchanges_left_out == 0 and packed.length - packed.pad_count >= 0.95 * SPEC.positions


def test_spliced_positions_count_speech_by_the_sound_that_is_there(dataset: ConversationSet) -> None:
    packed = pack(dataset[0], dataset, mini_batch_size=4)
    position, segments = 0, iter(packed.speech_segments)
    starts = []
    for number, token in enumerate(packed.input_ids.tolist()):
        assert packed.spliced_positions[number] == position
        if token == dataset.tokenizer.user_id:
            starts.append(position)
        if token == -200:
            frames = soundfile.info(dataset.pool.samples_path(next(segments))).frames // 160
            position += ((frames + 1) // 2) // 5
        else:
            position += 1
    assert position == packed.length and next(segments, None) is None
    assert tuple(starts) == packed.turn_starts
    assert sum(packed.speech_lengths) + len(packed.input_ids) - len(packed.speech_lengths) == packed.length


def test_only_the_assistants_words_are_labelled_and_each_spoken_turn_covers_its_own(dataset: ConversationSet) -> None:
    conversation = dataset[2]
    packed = pack(conversation, dataset, mini_batch_size=4)
    labels = packed.spliced_labels()
    answers = [t for t in conversation.turns if t.speaker == "assistant"]
    covered = torch.zeros(packed.length, dtype=torch.bool)
    for turn, spoken in zip(answers, packed.spoken_turns, strict=True):
        ids = labels[spoken.start : spoken.end].tolist()
        assert ids[-1] == dataset.tokenizer.eos_id and dataset.tokenizer.decode(ids) == turn.text
        utterance = dataset.utterance(turn.utterance_id)
        assert torch.equal(spoken.units, utterance.units) and torch.equal(spoken.durations, utterance.durations)
        assert len(spoken.units) <= 25 * len(ids), "more units than the speech generator has frames"
        covered[spoken.start : spoken.end] = True
    assert bool((labels[covered] >= 0).all()) and bool((labels[~covered] == -100).all())


def test_every_recall_points_at_the_stated_value_and_measures_back_to_it(dataset: ConversationSet) -> None:
    recalled = 0
    for conversation in dataset:
        packed = pack(conversation, dataset, mini_batch_size=4)
        labels = packed.spliced_labels()
        for recall in packed.recalls:
            here = recall.value_positions[0]
            value = labels[list(recall.value_positions)].tolist()
            assert dataset.tokenizer.decode(value).strip() == recall.value
            words = f"the word for the {recall.subject} is"
            count = len(dataset.tokenizer.encode(" " + words))
            assert _tokens_at(dataset, labels, here, count).strip().lower() == words
            told = [
                p
                for p in torch.nonzero(labels == value[0]).flatten().tolist()
                if p < here and _tokens_at(dataset, labels, p, count).strip().lower() == words
            ]
            assert recall.distance_to_last_mention == here - told[-1]
            assert here - recall.distance_to_echo in told
            if recall.stated_by == "assistant":
                assert recall.distance_to_statement == recall.distance_to_echo
            else:
                assert recall.distance_to_echo < recall.distance_to_statement < recall.distance_to_echo + 15
                assert labels[here - recall.distance_to_statement] == -100
            assert 0 < recall.seconds_since_last_mention <= recall.seconds_since_statement
            recalled += 1
        asked = sum(t.fact_asked is not None and t.speaker == "assistant" for t in conversation.turns)
        assert len(packed.recalls) == asked
    assert recalled > 15


def test_a_greedier_speech_rule_leaves_whole_exchanges_out_and_says_how_many(dataset: ConversationSet) -> None:
    packed = pack(dataset[0], dataset, speech_positions=lambda frames: frames // 4, mini_batch_size=4)
    usual = pack(dataset[0], dataset, mini_batch_size=4)
    assert packed.length <= SPEC.positions and packed.exchanges_left_out > 0
    assert len(packed.turn_starts) + packed.exchanges_left_out == len(usual.turn_starts)
    assert (
        packed.input_ids.tolist()[: -packed.pad_count or None]
        == usual.input_ids.tolist()[: len(packed.input_ids) - packed.pad_count]
    )
    assert len(packed.recalls) < len(usual.recalls)


def test_the_default_rule_counts_each_window_of_thirty_seconds_on_its_own() -> None:
    assert [default_speech_positions(f) for f in (9, 10, 299, 3000, 3009, 6001, 7500)] == [1, 1, 30, 300, 301, 600, 750]


def test_a_packing_that_makes_no_sense_is_refused(dataset: ConversationSet) -> None:
    with pytest.raises(ValueError, match="mini_batch_size is 0"):
        pack(dataset[0], dataset, mini_batch_size=0)
    with pytest.raises(ValueError, match="no exchange that fits"):
        pack(dataset[0], dataset, mini_batch_size=512)
    with pytest.raises(ValueError, match="at least 1"):
        pack(dataset[0], dataset, speech_positions=lambda frames: 0)
