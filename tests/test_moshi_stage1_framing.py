"""Conversations as frames of text, own speech and heard speech, against the utterances they are put together from."""

from __future__ import annotations

import pytest
from conversation_fixtures import SPEC

from backbones.speech import expand_repeats
from experiments.data.dataset import ConversationSet
from experiments.data.framing import FRAME_RATE_HZ, FramedConversation, frame_conversation, silence_unit
from experiments.data.packing import pack
from experiments.data.synthetic import build_conversations

NO_TEXT = 3


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ConversationSet:
    return build_conversations(SPEC, tmp_path_factory.mktemp("framing"), skip_bad_audio=False)


def framed(dataset: ConversationSet, index: int) -> FramedConversation:
    return frame_conversation(dataset[index], dataset, NO_TEXT)


def test_frames_hold_every_token_and_every_unit_once_and_silence_elsewhere(dataset: ConversationSet) -> None:
    silence = silence_unit(dataset.codebook)
    for index, conversation in enumerate(dataset):
        frames = framed(dataset, index)
        own, heard = frames.own.flatten().tolist(), frames.heard.flatten().tolist()
        tokens: list[int] = []
        at = {"assistant": 0, "user": 0}
        for turn in conversation.turns:
            if turn.speaker == "assistant":
                tokens += [*dataset.tokenizer.encode(turn.text), dataset.tokenizer.eos_id]
            units = expand_repeats(*dataset.pool.units(turn.utterance_id)).tolist()
            stream = own if turn.speaker == "assistant" else heard
            # The next place where all of it stands in a row, from a whole frame on.
            place = next(i for i in range(at[turn.speaker], len(stream), 4) if stream[i : i + len(units)] == units)
            stream[place : place + len(units)] = [silence] * len(units)
            at[turn.speaker] = place
        assert frames.text[frames.text != NO_TEXT].tolist() == tokens
        assert set(own) == set(heard) == {silence}
        assert len(frames) * 4 == len(own) == len(heard)


def test_no_own_sound_is_said_before_all_of_its_text_is_written(dataset: ConversationSet) -> None:
    silence = silence_unit(dataset.codebook)
    for index in range(len(dataset)):
        frames = framed(dataset, index)
        ends = [0, *(turn.end for turn in frames.turns)]
        for before, turn in zip(ends, frames.turns, strict=False):
            assert (frames.text[turn.start : turn.sound] != NO_TEXT).all()
            assert (frames.text[turn.sound : turn.end] == NO_TEXT).all()
            assert (frames.own[before : turn.sound] == silence).all()
            # Nothing of the question is heard any more when the answer begins.
            assert (frames.heard[turn.start : turn.end] == silence).all()


def test_recalls_are_those_of_packing_and_their_seconds_those_of_the_frames(dataset: ConversationSet) -> None:
    recalled = 0
    for index, conversation in enumerate(dataset):
        frames = framed(dataset, index)
        packed = pack(conversation, dataset, mini_batch_size=1)
        assert [(r.subject, r.value, r.stated_by) for r in frames.recalls] == [
            (r.subject, r.value, r.stated_by) for r in packed.recalls
        ]
        for found, known in zip(frames.recalls, packed.recalls, strict=True):
            text = dataset.tokenizer.decode(frames.text[list(found.value_positions)].tolist())
            assert text.strip() == found.value
            # Pauses are stretched to their text, never cut: by some tokens a turn, and less than half of the time.
            assert known.seconds_since_last_mention - 1.2 <= found.seconds_since_last_mention
            assert found.seconds_since_last_mention <= 1.5 * known.seconds_since_last_mention + 0.5
            recalled += 1
        assert frames.label_seconds().shape == (int((frames.text != NO_TEXT).sum()),)
        assert len(frames) / FRAME_RATE_HZ >= 0.99 * conversation.duration_s
    assert recalled > 5


def test_silence_is_the_quietest_unit(dataset: ConversationSet) -> None:
    loudness = dataset.codebook.centroids.mean(dim=1)
    assert silence_unit(dataset.codebook) == int(loudness.argmin())


def test_an_id_that_stands_for_no_text_cannot_be_a_token_of_the_text(dataset: ConversationSet) -> None:
    token = dataset.tokenizer.encode(dataset[0].turns[1].text)[0]
    with pytest.raises(ValueError, match=rf"token {token} stands for no text"):
        frame_conversation(dataset[0], dataset, token)
