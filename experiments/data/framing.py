"""A conversation as frames of 80 ms, what a model hears and says at once: text, own speech, and speech that is heard.

    text   .  .  .  .  .  .  Yes ,  box tiger . <eos> .  .  .  .  .  .  .
    own    -  -  -  -  -  -  -   -  -   -     -  -    s  s  s  s  s  s  -
    heard  s  s  s  s  s  -  -   -  -   -     -  -    -  -  -  -  -  -  -

Speech units come at 50 Hz and frames at 12.5 Hz, so the four units of a frame are its four codes, in the order of time
(not levels of a residual quantiser, which Mimi's codes of a frame are). Where a `FrameCodes` of another kind is given,
its codes stand there instead. Nobody speaking is the code of silence. What the user says is heard and not written.

The text of a turn stands directly before its sound, one token a frame. No alignment of words is known, and spreading
the tokens over the turn lets a model hear the beginning of a word in its own speech before it has to write it: of the
answers "Yes, box tiger.", with 12 values in the place of "tiger", units heard that early tell the value once in 8.4
times, where guessing does once in 12. Moshi's own delay of speech after text is this, grown to the length of a turn.
A pause that is shorter than the text is made as long, so that a conversation may last longer than its turns say.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from backbones.speech import UNIT_RATE_HZ, UnitCodebook, expand_repeats, log_mel
from experiments.data.conversations import Conversation, Turn
from experiments.data.dataset import ConversationSet
from experiments.data.packing import Recall

UNITS_PER_FRAME = 4
FRAME_RATE_HZ = UNIT_RATE_HZ / UNITS_PER_FRAME
SILENCE_SAMPLES = 400


class FrameCodes(Protocol):
    """What utterances are in frames of Q codes."""

    @property
    def silence(self) -> Tensor:
        """(Q,) int64: a frame in which nobody speaks."""
        ...

    def of(self, utterance_id: str) -> Tensor:
        """(frames, Q) int64 of one utterance, its last frame filled up with silence."""
        ...


class UnitFrames:
    """The four k-means units of a frame, in the order of time."""

    def __init__(self, dataset: ConversationSet) -> None:
        self._pool = dataset.pool
        self._silence = silence_unit(dataset.codebook)

    @property
    def silence(self) -> Tensor:
        return torch.full((UNITS_PER_FRAME,), self._silence)

    def of(self, utterance_id: str) -> Tensor:
        units = expand_repeats(*self._pool.units(utterance_id))
        units = torch.nn.functional.pad(units, (0, -len(units) % UNITS_PER_FRAME), value=self._silence)
        return units.view(-1, UNITS_PER_FRAME)


@dataclass(frozen=True, kw_only=True)
class FramedTurn:
    """Where a turn of the assistant stands: text frames [start, sound), sound frames [sound, end)."""

    start: int
    sound: int
    end: int
    text: str
    question: str


@dataclass(frozen=True, kw_only=True, eq=False)
class FramedConversation:
    """One conversation of T frames, whole.

    text (T,) int64: a token's id, or the id that stands for no text. own, heard (T, Q) int64: codes of the frame, which
        are four units where nothing else was asked for.
    turns: of the assistant. recalls: as packing has them, their positions frames, and seconds those of the frames.
    """

    name: str
    text: Tensor
    own: Tensor
    heard: Tensor
    turns: tuple[FramedTurn, ...]
    recalls: tuple[Recall, ...]

    def __len__(self) -> int:
        return len(self.text)

    def label_seconds(self) -> Tensor:
        """(tokens,) seconds at which the turn of each text token begins, in the order of the tokens."""
        starts = torch.tensor([turn.start for turn in self.turns]) / FRAME_RATE_HZ
        return starts.repeat_interleave(torch.tensor([turn.sound - turn.start for turn in self.turns]))


@dataclass(frozen=True, kw_only=True)
class _PlacedTurn:
    """Frames of a turn. ids: its text tokens, none for the user. value: frames of the fact's value; for speech that is
    heard, its last frame alone. codes (frames, Q).
    """

    start: int
    sound: int
    end: int
    ids: tuple[int, ...]
    value: tuple[int, ...]
    codes: Tensor


def frame_conversation(
    conversation: Conversation, dataset: ConversationSet, no_text_id: int, codes: FrameCodes | None = None
) -> FramedConversation:
    """Lays a conversation out in frames.

    no_text_id: what stands in the text where no token does. Raises ValueError where it is a token of this text.
    codes: what sounds are; None is the data's units.
    """
    codes = UnitFrames(dataset) if codes is None else codes
    placed: list[_PlacedTurn] = []
    ended_s, frame = 0.0, 0
    for turn in conversation.turns:
        pause = max(1, round((turn.start_s - ended_s) * FRAME_RATE_HZ))
        placed.append(_place(turn, conversation, dataset, frame, pause, codes))
        ended_s, frame = turn.end_s, placed[-1].end
    text = torch.full((frame,), no_text_id)
    sounds = {speaker: codes.silence.repeat(frame, 1) for speaker in ("user", "assistant")}
    for turn, place in zip(conversation.turns, placed, strict=True):
        if no_text_id in place.ids:
            raise ValueError(f"token {no_text_id} stands for no text, and {turn.text!r} has it; name another")
        text[place.start : place.sound] = torch.tensor(place.ids, dtype=torch.int64)
        sounds[turn.speaker][place.sound : place.end] = place.codes
    return FramedConversation(
        name=conversation.name,
        text=text,
        own=sounds["assistant"],
        heard=sounds["user"],
        turns=tuple(
            FramedTurn(start=p.start, sound=p.sound, end=p.end, text=turn.text, question=before.text)
            for (before, turn), p in zip(itertools.pairwise(conversation.turns), placed[1:], strict=True)
            if turn.speaker == "assistant"
        ),
        recalls=tuple(_recalls(conversation, placed)),
    )


@functools.lru_cache(maxsize=8)
def silence_unit(codebook: UnitCodebook) -> int:
    """The unit that is nearest to no sound at all."""
    return int(codebook.encode(log_mel(torch.zeros(SILENCE_SAMPLES), codebook.n_mels))[0])


def _place(
    turn: Turn, conversation: Conversation, dataset: ConversationSet, after: int, pause: int, codes: FrameCodes
) -> _PlacedTurn:
    """A turn that begins `pause` frames behind frame `after`, or as many more as its text takes."""
    frames = codes.of(turn.utterance_id)
    if turn.speaker == "user":
        start = after + pause
        end = start + len(frames)
        return _PlacedTurn(start=start, sound=start, end=end, ids=(), value=(end - 1,), codes=frames)
    ids = (*dataset.tokenizer.encode(turn.text), dataset.tokenizer.eos_id)
    sound = after + max(pause, len(ids))
    start = sound - len(ids)
    told = turn.fact_stated if turn.fact_stated is not None else turn.fact_asked
    value: tuple[int, ...] = ()
    if told is not None:
        word = conversation.facts[told].value
        character = turn.text.rindex(word)
        tokens = dataset.tokenizer.tokens_of_span(turn.text, character, character + len(word))
        value = tuple(range(start + tokens[0], start + tokens[1]))
    return _PlacedTurn(start=start, sound=sound, end=sound + len(frames), ids=ids, value=value, codes=frames)


def _recalls(conversation: Conversation, placed: list[_PlacedTurn]) -> list[Recall]:
    """Every answer, in the order of the conversation."""
    by_turn: list[tuple[int, Recall]] = []
    for fact in conversation.facts:
        stated, echo = placed[fact.stated_turn], placed[fact.echo_turn]
        for last, asked in itertools.pairwise((fact.echo_turn, *fact.asked_turns)):
            answer = placed[asked]
            here = answer.value[0]
            recall = Recall(
                subject=fact.subject,
                value=fact.value,
                value_positions=answer.value,
                distance_to_statement=here - stated.value[0],
                distance_to_echo=here - echo.value[0],
                distance_to_last_mention=here - placed[last].value[0],
                seconds_since_statement=(answer.start - stated.end) / FRAME_RATE_HZ,
                seconds_since_last_mention=(answer.start - placed[last].end) / FRAME_RATE_HZ,
                stated_by=conversation.turns[fact.stated_turn].speaker,
            )
            by_turn.append((asked, recall))
    return [recall for _, recall in sorted(by_turn, key=lambda pair: pair[0])]
