"""A conversation as positions of the language model: markers, text tokens, and one placeholder per stretch of speech.

    <bos> | <user> [speech] <assistant> text ... <eos> | <user> [speech] <assistant> text ... <eos> | ... <pad> ...

A model that hears nothing reads the transcript where the speech would stand (`pack_transcript`).

T ids come in; the model puts the speech embeddings of an utterance where its placeholder stands, so T ids become P
*spliced* positions. All positions reported here are spliced ones, the ones the model and its state see.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from experiments.data.conversations import Conversation, ConversationFact, Turn
from experiments.data.dataset import ConversationSet

SPEECH_PLACEHOLDER_ID = -200
IGNORED_LABEL = -100
WINDOW_FRAMES = 3000
"""30 s of log-mel at 100 Hz: what the speech encoder takes at once."""


def default_speech_positions(mel_frames: int) -> int:
    """Positions of an utterance of so many mel frames at 100 Hz: ((F + 1) // 2) // 5 for each 30 s window, summed."""
    windows, rest = divmod(mel_frames, WINDOW_FRAMES)
    return windows * (((WINDOW_FRAMES + 1) // 2) // 5) + ((rest + 1) // 2) // 5


@dataclass(frozen=True, kw_only=True, eq=False)
class PackedTurn:
    """A turn of the assistant: its labelled positions [start, end), text and <eos>, and the units (U,) it is said in
    (repeats collapsed) with their durations (U,) in 20 ms.
    """

    start: int
    end: int
    units: Tensor
    durations: Tensor


@dataclass(frozen=True, kw_only=True)
class Recall:
    """A fact that is recalled: where its value stands in the assistant's answer, and how far back it was heard of.

    value_positions: spliced positions of the value's tokens (the model predicts each one position earlier).
    Distances in positions are from the first of these back to the end of the user's speech that stated it (to the
    value's first token where the assistant stated it, or where the user is read), to the value in the assistant's
    echo, and to the value in its last mention, whichever turn that was. Seconds are from the end of the stating, of
    the last mentioning turn to the start of the answer.
    """

    subject: str
    value: str
    value_positions: tuple[int, ...]
    distance_to_statement: int
    distance_to_echo: int
    distance_to_last_mention: int
    seconds_since_statement: float
    seconds_since_last_mention: float
    stated_by: str


@dataclass(frozen=True, kw_only=True, eq=False)
class PackedConversation:
    """One conversation, ready for the model.

    input_ids (T,) int64 with SPEECH_PLACEHOLDER_ID where one stretch of speech stands; labels (T,) int64, the id where
    the assistant's text or <eos> stands, else IGNORED_LABEL (not shifted: labels[t] is the id at t); spliced_positions
    (T,) int64, where each id comes to stand (the first position of a stretch of speech).
    length: spliced positions in all, `pad_count` of them padding at the end; a multiple of the mini-batch size.
    speech_segments: utterance ids of the stretches in reading order; speech_lengths: their positions.
    turn_starts: spliced position of each exchange's <user>: where a sequence may be cut into segments for training.
    exchanges_left_out: whole exchanges at the end that did not fit: none under the rule the conversations were drawn
    with, where the spec's positions are a multiple of the mini-batch size (else the last few may not fit).
    """

    name: str
    input_ids: Tensor
    labels: Tensor
    spliced_positions: Tensor
    length: int
    pad_count: int
    speech_segments: tuple[str, ...]
    speech_lengths: tuple[int, ...]
    spoken_turns: tuple[PackedTurn, ...]
    recalls: tuple[Recall, ...]
    turn_starts: tuple[int, ...]
    exchanges_left_out: int

    def spliced_labels(self) -> Tensor:
        """Labels by spliced position: (length,) int64, IGNORED_LABEL over speech, markers and padding."""
        labels = torch.full((self.length,), IGNORED_LABEL, dtype=torch.int64)
        labels[self.spliced_positions] = self.labels
        return labels


@dataclass(frozen=True, kw_only=True)
class _PlacedTurn:
    """Where a turn came to stand. value: spliced positions of the fact's value; for speech, its last position alone."""

    value: tuple[int, ...]
    start_s: float
    end_s: float


class _Packer:
    """speech_positions: None where the user's words are read, not heard."""

    def __init__(self, dataset: ConversationSet, speech_positions: Callable[[int], int] | None) -> None:
        self.dataset = dataset
        self.speech_positions = speech_positions
        self.ids: list[int] = []
        self.labels: list[int] = []
        self.at: list[int] = []
        self.position = 0
        self.segments: list[str] = []
        self.segment_lengths: list[int] = []

    def add_id(self, token_id: int, labelled: bool) -> None:
        self.ids.append(token_id)
        self.labels.append(token_id if labelled else IGNORED_LABEL)
        self.at.append(self.position)
        self.position += 1

    def add_text(self, text: str, labelled: bool) -> None:
        for token_id in self.dataset.tokenizer.encode(text):
            self.add_id(token_id, labelled)

    def exchange_positions(self, user: Turn, assistant: Turn) -> int:
        assert (user.speaker, assistant.speaker) == ("user", "assistant")
        tokenizer = self.dataset.tokenizer
        if self.speech_positions is None:
            heard = len(tokenizer.encode(user.text))
        else:
            heard = self.speech_positions(self.dataset.pool.mel_frames(user.utterance_id))
        return 1 + heard + 2 + len(tokenizer.encode(assistant.text))

    def add_speech(self, utterance_id: str) -> None:
        assert self.speech_positions is not None
        frames = self.dataset.pool.mel_frames(utterance_id)
        count = self.speech_positions(frames)
        if count < 1:
            raise ValueError(
                f"speech_positions gives {count} for the {frames} mel frames of {utterance_id}; give at least 1"
            )
        self.add_id(SPEECH_PLACEHOLDER_ID, labelled=False)
        self.position += count - 1
        self.segments.append(utterance_id)
        self.segment_lengths.append(count)


def pack(
    conversation: Conversation,
    dataset: ConversationSet,
    speech_positions: Callable[[int], int] = default_speech_positions,
    mini_batch_size: int = 64,
) -> PackedConversation:
    """Lay a conversation out in positions, at most `dataset.spec.positions`, padded to a multiple of the mini-batch
    size.

    speech_positions: how many positions the model makes of so many mel frames. Only whole exchanges are packed; what
    does not fit is counted in `exchanges_left_out`, never cut.
    """
    return _pack(conversation, _Packer(dataset, speech_positions), mini_batch_size)


def pack_transcript(
    conversation: Conversation, dataset: ConversationSet, mini_batch_size: int = 64
) -> PackedConversation:
    """The same for a model that reads: the words of the user's turns, without labels, where their speech would stand.

    A conversation is drawn to fill the spec's positions with speech; in words it takes fewer.
    """
    return _pack(conversation, _Packer(dataset, None), mini_batch_size)


def _pack(conversation: Conversation, packer: _Packer, mini_batch_size: int) -> PackedConversation:
    if mini_batch_size < 1:
        raise ValueError(f"mini_batch_size is {mini_batch_size}; it must be at least 1")
    dataset = packer.dataset
    limit = dataset.spec.positions - dataset.spec.positions % mini_batch_size
    if conversation.begins_here:
        packer.add_id(dataset.tokenizer.bos_id, labelled=False)
    placed: list[_PlacedTurn] = []
    spoken: list[PackedTurn] = []
    turn_starts: list[int] = []
    for first in range(0, len(conversation.turns), 2):
        if packer.position + packer.exchange_positions(*conversation.turns[first : first + 2]) > limit:
            break
        turn_starts.append(packer.position)
        placed.append(_place_user_turn(packer, conversation, first))
        turn, spoken_turn = _place_assistant_turn(packer, conversation, first + 1)
        placed.append(turn)
        spoken.append(spoken_turn)
    if not placed:
        raise ValueError(
            f"conversation {conversation.name} has no exchange that fits into {limit} positions; give more"
        )
    pad_count = -packer.position % mini_batch_size
    for _ in range(pad_count):
        packer.add_id(dataset.tokenizer.pad_id, labelled=False)
    return PackedConversation(
        name=conversation.name,
        input_ids=torch.tensor(packer.ids),
        labels=torch.tensor(packer.labels),
        spliced_positions=torch.tensor(packer.at),
        length=packer.position,
        pad_count=pad_count,
        speech_segments=tuple(packer.segments),
        speech_lengths=tuple(packer.segment_lengths),
        spoken_turns=tuple(spoken),
        recalls=tuple(_recalls(conversation, placed)),
        turn_starts=tuple(turn_starts),
        exchanges_left_out=(len(conversation.turns) - len(placed)) // 2,
    )


def _place_user_turn(packer: _Packer, conversation: Conversation, index: int) -> _PlacedTurn:
    turn = conversation.turns[index]
    packer.add_id(packer.dataset.tokenizer.user_id, labelled=False)
    start = packer.position
    if packer.speech_positions is not None:
        packer.add_speech(turn.utterance_id)
        value: tuple[int, ...] = (packer.position - 1,)
    else:
        packer.add_text(turn.text, labelled=False)
        value = () if turn.fact_stated is None else _value_positions(packer, conversation, index, start)
    return _PlacedTurn(value=value, start_s=turn.start_s, end_s=turn.end_s)


def _value_positions(packer: _Packer, conversation: Conversation, index: int, start: int) -> tuple[int, ...]:
    """Where the value of the fact that a turn tells or recalls stands, its text beginning at `start`."""
    turn = conversation.turns[index]
    told = turn.fact_stated if turn.fact_stated is not None else turn.fact_asked
    if told is None:
        return ()
    word = conversation.facts[told].value
    character = turn.text.rindex(word)
    first, end = packer.dataset.tokenizer.tokens_of_span(turn.text, character, character + len(word))
    return tuple(range(start + first, start + end))


def _place_assistant_turn(packer: _Packer, conversation: Conversation, index: int) -> tuple[_PlacedTurn, PackedTurn]:
    turn = conversation.turns[index]
    tokenizer = packer.dataset.tokenizer
    packer.add_id(tokenizer.assistant_id, labelled=False)
    start = packer.position
    packer.add_text(turn.text, labelled=True)
    packer.add_id(tokenizer.eos_id, labelled=True)
    value = _value_positions(packer, conversation, index, start)
    units, durations = packer.dataset.pool.units(turn.utterance_id)
    spoken = PackedTurn(start=start, end=packer.position, units=units, durations=durations)
    return _PlacedTurn(value=value, start_s=turn.start_s, end_s=turn.end_s), spoken


def _recalls(conversation: Conversation, placed: list[_PlacedTurn]) -> list[Recall]:
    """Every answer among the turns that were packed, in the order of the conversation."""
    by_turn: list[tuple[int, Recall]] = []
    for fact in conversation.facts:
        mentions = (fact.echo_turn, *fact.asked_turns)
        for last, asked in itertools.pairwise(mentions):
            if asked < len(placed):
                by_turn.append((asked, _recall(conversation, fact, placed, last, asked)))
    return [recall for _, recall in sorted(by_turn, key=lambda pair: pair[0])]


def _recall(
    conversation: Conversation, fact: ConversationFact, placed: list[_PlacedTurn], last: int, asked: int
) -> Recall:
    answer, stated = placed[asked], placed[fact.stated_turn]
    here = answer.value[0]
    return Recall(
        subject=fact.subject,
        value=fact.value,
        value_positions=answer.value,
        distance_to_statement=here - stated.value[0],
        distance_to_echo=here - placed[fact.echo_turn].value[0],
        distance_to_last_mention=here - placed[last].value[0],
        seconds_since_statement=answer.start_s - stated.end_s,
        seconds_since_last_mention=answer.start_s - placed[last].end_s,
        stated_by=conversation.turns[fact.stated_turn].speaker,
    )
