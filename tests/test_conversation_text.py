"""What is said: sentences, tokens, and conversations drawn without any sound."""

from __future__ import annotations

import itertools
import re
from collections import Counter

import numpy as np
import pytest

from backbones.speech.espeak import EspeakVoice
from experiments.data.conversations import Conversation, Measured, distance_buckets, draw_conversation
from experiments.data.spec import ConversationSpec
from experiments.data.text import COLOURS, OBJECTS, VALUES, Sentence, sentence_pool, utterance_id
from experiments.data.tokenizer import ConversationTokenizer

TELLING = re.compile(r"the word for the (?P<subject>[a-z ]+) is (?P<value>[a-z]+)\.", re.IGNORECASE)


def _measure(sentence: Sentence) -> Measured:
    """Speech of 14 letters a second at 10 positions a second; text at a token a word."""
    duration_s = len(sentence.text) / 14
    positions = 1 + round(10 * duration_s) if sentence.speaker == "user" else 3 + len(sentence.text.split())
    return Measured(utterance_id=sentence.text, positions=positions, duration_s=duration_s)


def _draw(spec: ConversationSpec, index: int = 0) -> Conversation:
    return draw_conversation(spec, sentence_pool(spec), _measure, "train", index)


def test_no_word_of_a_fact_occurs_in_small_talk() -> None:
    spoken = " ".join(
        s.text for user, assistant in sentence_pool(ConversationSpec()).small_talk for s in user + assistant
    )
    assert not set(re.findall(r"[a-z]+", spoken.lower())) & {*COLOURS, *OBJECTS, *VALUES}


def test_the_pool_has_every_sentence_once_and_stays_small() -> None:
    sentences = sentence_pool(ConversationSpec()).sentences()
    assert len({(s.speaker, s.text) for s in sentences}) == len(sentences)
    assert 1500 < len(sentences) < 3500
    assert len(sentence_pool(ConversationSpec(subjects=3, values=4, small_talk=12)).sentences()) < 80


def test_one_word_subjects_are_single_words_and_two_word_subjects_need_both() -> None:
    assert all(" " not in s for s in sentence_pool(ConversationSpec(subjects=7, subject_words=1)).subjects)
    subjects = [s.split() for s in sentence_pool(ConversationSpec(subjects=9)).subjects]
    assert min(Counter(colour for colour, _ in subjects).values()) > 1
    assert min(Counter(thing for _, thing in subjects).values()) > 1


def test_the_same_text_in_another_voice_is_another_utterance() -> None:
    same = utterance_id("Hello.", EspeakVoice(variant="f3"))
    assert same == utterance_id("Hello.", EspeakVoice(variant="f3"))
    others = [
        utterance_id("Hello.", EspeakVoice(variant="f3", pitch=51)),
        utterance_id("Hello", EspeakVoice(variant="f3")),
    ]
    assert same not in others and len(set(others)) == 2


@pytest.mark.parametrize("stated_by", ["user", "assistant", "both"])
def test_every_answer_is_the_value_told_last(stated_by: str) -> None:
    spec = ConversationSpec(positions=4000, subjects=9, values=11, fact_stated_by=stated_by, restate_probability=0.4)  # pyright: ignore
    conversation = _draw(spec)
    told: dict[str, str] = {}
    asked, restated, by = 0, 0, Counter()
    for number, turn in enumerate(conversation.turns):
        telling = TELLING.search(turn.text)
        if turn.fact_asked is not None and turn.speaker == "assistant":
            assert telling and told[telling["subject"]] == telling["value"]
            fact = conversation.facts[turn.fact_asked]
            assert (fact.subject, fact.value) == (telling["subject"], telling["value"]) and number in fact.asked_turns
            asked += 1
        elif telling:
            assert turn.fact_stated is not None
            assert conversation.facts[turn.fact_stated].value == telling["value"]
            if conversation.facts[turn.fact_stated].stated_turn == number:
                by[turn.speaker] += 1
                restated += telling["subject"] in told
                assert told.get(telling["subject"]) != telling["value"], "a new value differs from the one before"
            told[telling["subject"]] = telling["value"]
    assert asked > 10 and restated > 2
    assert set(by) == ({"user", "assistant"} if stated_by == "both" else {stated_by})


def test_a_statement_of_the_user_is_always_echoed_by_the_next_turn() -> None:
    conversation = _draw(ConversationSpec(positions=3000, fact_stated_by="user"))
    for fact in conversation.facts:
        assert fact.echo_turn == fact.stated_turn + 1
        assert fact.value in conversation.turns[fact.stated_turn].text
        assert fact.value in conversation.turns[fact.echo_turn].text


def test_recalls_fall_into_every_distance_bucket_and_conversations_are_full() -> None:
    spec = ConversationSpec()
    counts: Counter[tuple[int, int]] = Counter()
    for index in range(5):
        conversation = _draw(spec, index)
        ends = 1 + np.cumsum([_measure(Sentence(speaker=t.speaker, text=t.text)).positions for t in conversation.turns])
        assert 0.95 * spec.positions <= ends[-1] <= spec.positions
        for fact in conversation.facts:
            for before, asked in zip((fact.echo_turn, *fact.asked_turns), fact.asked_turns, strict=False):
                distance = ends[asked] - ends[before]
                counts[next(b for b in distance_buckets(spec.positions) if b[0] <= distance < b[1])] += 1
    assert set(counts) == {(0, 256), (256, 1024), (1024, 4096), (4096, 8192)}
    assert sum(counts.values()) >= 5 * 40 and min(counts.values()) >= 5 * 5


def test_conversations_of_other_seeds_splits_and_indices_differ_and_the_same_are_the_same() -> None:
    spec = ConversationSpec(positions=700, subjects=4)
    other_seed = ConversationSpec(positions=700, subjects=4, seed=1)
    pool = sentence_pool(spec)
    drawn = [
        draw_conversation(spec, pool, _measure, "train", 0),
        draw_conversation(spec, pool, _measure, "train", 1),
        draw_conversation(spec, pool, _measure, "validation", 0),
        draw_conversation(other_seed, pool, _measure, "train", 0),
    ]
    assert len({c.turns for c in drawn}) == 4
    assert draw_conversation(spec, pool, _measure, "train", 1) == drawn[1]


def test_turns_follow_each_other_in_time_with_natural_pauses() -> None:
    turns = _draw(ConversationSpec(positions=5000)).turns
    pauses = np.array([after.start_s - before.end_s for before, after in itertools.pairwise(turns)])
    assert pauses.min() >= 0.099 and pauses.max() <= 3.001
    assert 0.25 < np.median(pauses) < 0.45
    lengths = np.array([t.end_s - t.start_s for t in turns])
    assert np.percentile(lengths, 95) > 3 * np.percentile(lengths, 5)


def test_distance_buckets_cover_a_conversation_without_gaps() -> None:
    for positions in (200, 300, 1024, 8192, 65536):
        buckets = distance_buckets(positions)
        assert buckets[0][0] == 0 and buckets[-1][1] >= positions
        assert all(before[1] == after[0] for before, after in itertools.pairwise(buckets))


def test_any_text_survives_the_tokenizer_and_fact_words_are_single_tokens() -> None:
    spec = ConversationSpec(subjects=4, values=5, small_talk=12)
    pool = sentence_pool(spec)
    tokenizer = ConversationTokenizer.train([s.text for s in pool.sentences()], 512, pool.values)
    for text in ("The word for the red box is tiger.", "Ünseen wörds, 42 of them: naïve!"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert all(len(tokenizer.encode(f" {value}")) == 1 for value in pool.values)
    ids = {tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.user_id, tokenizer.assistant_id}
    assert len(ids) == 5 and tokenizer.decode(sorted(ids)) == ""


def test_a_vocabulary_too_small_for_the_facts_is_refused_with_advice() -> None:
    pool = sentence_pool(ConversationSpec())
    with pytest.raises(ValueError, match="text_vocab_size 320 is too small"):
        ConversationTokenizer.train([s.text for s in pool.sentences()], 320, pool.values)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"positions": 20}, "positions is 20"),
        ({"values": 65}, "values is 65"),
        ({"subjects": 13, "subject_words": 1}, "subjects is 13"),
        ({"n_mels": 64}, "80 and 128"),
        ({"fact_stated_by": "nobody"}, "'user', 'assistant' or 'both'"),
        ({"user_voice": EspeakVoice(), "assistant_voice": EspeakVoice()}, "same voice"),
    ],
)
def test_a_spec_that_makes_no_sense_says_what_it_should_be(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConversationSpec(**fields)


WHOLE_NUMBERS = (
    "positions",
    "conversations",
    "validation_conversations",
    "seed",
    "subjects",
    "subject_words",
    "values",
    "subjects_per_conversation",
    "small_talk",
    "n_mels",
    "unit_vocab_size",
    "unit_fit_utterances",
    "text_vocab_size",
)


@pytest.mark.parametrize("name", WHOLE_NUMBERS)
def test_a_whole_number_is_nothing_else(name: str) -> None:
    usual = {**vars(ConversationSpec()), "subjects_per_conversation": 3}
    wrong: list[object] = [float(usual[name]), True, str(usual[name])]
    for given in wrong if name == "subjects_per_conversation" else [*wrong, None]:
        with pytest.raises(ValueError, match=f"{name} must be a whole number, got {given!r}"):
            ConversationSpec(**{**usual, name: given})


@pytest.mark.parametrize(
    "name", ["event_share", "early_share", "restate_probability", "pause_median_s", "pause_spread"]
)
def test_a_share_or_a_time_is_a_number(name: str) -> None:
    for given in ("0.5", None, True):
        with pytest.raises(ValueError, match=f"{name} must be a number, got {given!r}"):
            ConversationSpec(**{name: given})


def test_voices_are_voices() -> None:
    for given in ("en-us", None, {"language": "en-us"}):
        with pytest.raises(ValueError, match="user_voice must be an EspeakVoice"):
            ConversationSpec(user_voice=given)  # pyright: ignore[reportArgumentType]
    for fields in ({"pitch": 50.0}, {"words_per_minute": "190"}, {"pitch": True}):
        with pytest.raises(ValueError, match="must be a whole number"):
            EspeakVoice(**fields)  # pyright: ignore[reportArgumentType]


def test_the_digest_follows_every_field_and_the_pools_only_its_own() -> None:
    spec = ConversationSpec()
    assert spec.digest() == ConversationSpec().digest()
    longer, other_sound = ConversationSpec(positions=16384), ConversationSpec(n_mels=128)
    assert len({spec.digest(), longer.digest(), other_sound.digest()}) == 3
    assert longer.pool_digest() == spec.pool_digest() != other_sound.pool_digest()
