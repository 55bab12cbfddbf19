"""A conversation without an end: the user's turns come one after the other, and a trained model says its own.

Nothing is ever reset. What the user says is taken from the data's conversations, one behind the other; what the model
says is its own, and is what it reads from then on. A stream is the model's side, and its clock the conversation's:
while the user speaks, a backbone that takes turns is silent, and one that hears and speaks at once says what it likes.
"""

from __future__ import annotations

import itertools
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from backbones.speech import SPEECH_SAMPLE_RATE_HZ, UNIT_RATE_HZ, UnitCodebook
from experiments.data.conversations import Turn
from experiments.data.dataset import ConversationSet
from experiments.data.framing import (
    FRAME_RATE_HZ,
    UNITS_PER_FRAME,
    FramedConversation,
    frame_conversation,
    silence_unit,
)
from experiments.quality.ngram import Symbols
from experiments.quality.real_streams import TurnFilter, every_turn
from experiments.quality.windows import SymbolBlock

SaidSymbols = Literal["units", "text"]
PAUSE_S = 0.5
"""Of silence behind every reply of a backbone that takes turns: a reply without a sound is a pause too."""
BLOCK_FRAMES = 125
"""Ten seconds of frames are turned to sound at once."""
MOST_REPLY_TOKENS = 64
"""A reply that has no end by then is ended for the model."""
TEXT_TEMPERATURE, TEXT_TOP_P = 0.7, 0.95
"""How backbones that take turns draw their text."""


@dataclass(frozen=True, kw_only=True)
class HeardTurn:
    """A turn of the user that is heard from `start_s` on; `reply_due_s`: from when on the data's assistant replies."""

    utterance_id: str
    start_s: float
    reply_due_s: float


@dataclass(frozen=True, kw_only=True, eq=False)
class SaidPiece:
    """What a stream says next, and what it took.

    symbols (N,) int64: speech units, or text tokens where an engine makes the sound; seconds (N,): of each, since the
    stream began, which with this piece reaches to end_s. samples (M,) float32 at sample_rate_hz: its sound. text: what
    was written meanwhile.
    positions: that the model has read so far. compute_s: from what is heard to sound, of this piece alone.
    first_audio_ms: until the first sound of this piece could be played; None where it has none.
    heard: turns of the user that begin in this piece.
    """

    symbols: Symbols
    seconds: NDArray[np.float64]
    end_s: float
    samples: NDArray[np.float32]
    sample_rate_hz: int
    text: str
    positions: int
    compute_s: float
    first_audio_ms: float | None
    heard: tuple[HeardTurn, ...]

    @property
    def block(self) -> SymbolBlock:
        """As the measures of quality read it."""
        return SymbolBlock(symbols=self.symbols, seconds=self.seconds, end_s=self.end_s)


class Speaker(Protocol):
    """A trained model that goes on speaking. sounds_like: what decides how its symbols sound, for files on disk."""

    sounds_like: str

    @property
    def most_rows(self) -> int | None:
        """Streams that it speaks at once; None is any number."""
        ...

    def speak(self, indices: Sequence[int], seed: int, stream_s: float) -> Iterator[tuple[SaidPiece, ...]]:
        """The next piece of every row, until each reaches stream_s or beyond. Row r hears the conversations from
        indices[r] on, in a circle.

        What is drawn follows from the seed and the rows alone. One stream of a speaker at a time.
        """
        ...

    def held_bytes(self) -> int:
        """Bytes that the streams being spoken hold now: keys and values, states, what is open of a reply."""
        ...


RealSpeech = Callable[[ConversationSet, int, TurnFilter], SymbolBlock]
"""The assistant's side of a conversation of the data as a speaker would say it: what is real, to compare with."""


def user_turns(dataset: ConversationSet, first: int) -> Iterator[Turn]:
    """Turns of the user from conversation `first` on, in a circle over all of the set."""
    for step in itertools.count():
        yield from (turn for turn in dataset[(first + step) % len(dataset)].turns if turn.speaker == "user")


def exchanges(dataset: ConversationSet, index: int, wanted: TurnFilter = every_turn) -> Iterator[tuple[Turn, Turn]]:
    """What the user says and what the assistant replies, of the replies that are wanted."""
    turns = dataset[index].turns
    return ((heard, reply) for heard, reply in zip(turns[::2], turns[1::2], strict=True) if wanted(reply))


def heard_s(dataset: ConversationSet, turn: Turn) -> float:
    """How long the user speaks, in whole units."""
    return round(dataset.pool.duration_s(turn.utterance_id) * UNIT_RATE_HZ) / UNIT_RATE_HZ


@dataclass(frozen=True, kw_only=True, eq=False)
class Reply:
    """One turn of a model: what was written and said. symbols stand evenly over the sound, the pause included."""

    symbols: Symbols
    samples: NDArray[np.float32]
    text: str
    positions: int
    first_audio_ms: float | None


class TurnSpeaker(ABC):
    """A backbone that hears a turn of the user, silent meanwhile, and says its own.

    A child gives `begin` and `reply`.
    """

    sounds_like: str
    sample_rate_hz: int
    most_rows: int | None = 1

    def __init__(self, dataset: ConversationSet) -> None:
        self.dataset = dataset

    @abstractmethod
    def begin(self, seed: int) -> None:
        """Forgets the stream before."""

    @abstractmethod
    def reply(self, turn: Turn, is_first: bool) -> Reply:
        """What is said to a turn of the user."""

    @abstractmethod
    def held_bytes(self) -> int: ...

    def silent_symbols(self, seconds: float) -> Symbols:
        """What stands in the stream while nothing is said: no text."""
        return np.zeros(0, np.int64)

    def speak(self, indices: Sequence[int], seed: int, stream_s: float) -> Iterator[tuple[SaidPiece, ...]]:
        """See `Speaker`; of one row."""
        [index] = indices
        self.begin(seed)
        end_s = 0.0
        for number, turn in enumerate(user_turns(self.dataset, index)):
            started = time.perf_counter()
            reply = self.reply(turn, number == 0)
            compute_s = time.perf_counter() - started
            start_s, reply_s = end_s, end_s + heard_s(self.dataset, turn)
            end_s = reply_s + len(reply.samples) / self.sample_rate_hz
            silence = self.silent_symbols(reply_s - start_s)
            silent_samples = np.zeros(round((reply_s - start_s) * self.sample_rate_hz), np.float32)
            yield (
                SaidPiece(
                    symbols=np.concatenate([silence, reply.symbols]),
                    seconds=np.concatenate([
                        np.linspace(start_s, reply_s, len(silence), endpoint=False),
                        np.linspace(reply_s, end_s, len(reply.symbols), endpoint=False),
                    ]),
                    end_s=end_s,
                    samples=np.concatenate([silent_samples, reply.samples]),
                    sample_rate_hz=self.sample_rate_hz,
                    text=reply.text,
                    positions=reply.positions,
                    compute_s=compute_s,
                    first_audio_ms=reply.first_audio_ms,
                    heard=(HeardTurn(utterance_id=turn.utterance_id, start_s=start_s, reply_due_s=reply_s),),
                ),
            )  # fmt: skip
            if end_s >= stream_s:
                return


StepFrame = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Codes heard (B, Q) to the text (B,) and the units (B, 4) said beside them."""


class FrameSpeaker(ABC):
    """A backbone that hears and says a frame of 80 ms at a time. A child gives `stepping` and `held_bytes`.

    no_text_id: of a frame without a token. heard_codebooks: more than the units of a frame are filled with nothing_id.
    """

    sounds_like: str
    most_rows: int | None = None

    def __init__(self, dataset: ConversationSet, no_text_id: int, heard_codebooks: int, nothing_id: int) -> None:
        self.dataset, self.no_text_id = dataset, no_text_id
        self._heard_codebooks, self._nothing_id = heard_codebooks, nothing_id
        self.sounds_like = f"units {dataset.codebook.fingerprint}"
        self.silence = silence_unit(dataset.codebook)

    @abstractmethod
    def stepping(self, rows: int, seed: int, frames: int) -> AbstractContextManager[StepFrame]:
        """A new stream of so many rows and, at most, frames."""

    @abstractmethod
    def held_bytes(self) -> int: ...

    def speak(self, indices: Sequence[int], seed: int, stream_s: float) -> Iterator[tuple[SaidPiece, ...]]:
        """See `Speaker`; a piece is ten seconds."""
        heard = [self._heard(index) for index in indices]
        turns = [_TurnsInFrames(self.dataset, index) for index in indices]
        blocks = math.ceil(stream_s * FRAME_RATE_HZ / BLOCK_FRAMES)
        with self.stepping(len(indices), seed, blocks * BLOCK_FRAMES) as step:
            for number in range(blocks):
                started = time.perf_counter()
                said = [step(torch.stack([next(row) for row in heard])) for _ in range(BLOCK_FRAMES)]
                text = torch.stack([each for each, _ in said], dim=1).cpu()
                units = torch.stack([each for _, each in said], dim=1).cpu()
                known = units.flatten(1).clamp(max=self.dataset.codebook.size - 1)
                sounds = [self.dataset.codebook.to_waveform(row) for row in known]
                compute_s = time.perf_counter() - started
                yield tuple(
                    self._piece(number, row.numpy(), sound, ids, compute_s, heard_by_row)
                    for row, sound, ids, heard_by_row in zip(known, sounds, text, turns, strict=True)
                )

    def _piece(
        self, number: int, units: Symbols, samples: NDArray[np.float32], text: Tensor, compute_s: float,
        turns: _TurnsInFrames,
    ) -> SaidPiece:  # fmt: skip
        first = number * len(units)
        return SaidPiece(
            symbols=units,
            seconds=(first + np.arange(len(units))) / UNIT_RATE_HZ,
            end_s=(first + len(units)) / UNIT_RATE_HZ,
            samples=samples,
            sample_rate_hz=SPEECH_SAMPLE_RATE_HZ,
            text=self.dataset.tokenizer.decode(text[text != self.no_text_id].tolist()),
            positions=(number + 1) * BLOCK_FRAMES,
            compute_s=compute_s,
            # What is heard is whole after its frame; what is said to it, one step later.
            first_audio_ms=1000 * (1 / FRAME_RATE_HZ + compute_s / BLOCK_FRAMES),
            heard=turns.begun_before((first + len(units)) / UNIT_RATE_HZ),
        )

    def _heard(self, index: int) -> Iterator[Tensor]:
        """Codes (Q,) heard, frame by frame."""
        for step in itertools.count():
            units = _framed(self.dataset, (index + step) % len(self.dataset)).heard
            codes = torch.full((len(units), self._heard_codebooks), self._nothing_id)
            codes[:, : units.shape[1]] = units
            yield from codes


class _TurnsInFrames:
    """The user's turns that a stream of frames hears, in their order, each given once."""

    def __init__(self, dataset: ConversationSet, first: int) -> None:
        self._turns = self._along(dataset, first)
        self._next = next(self._turns)

    def begun_before(self, end_s: float) -> tuple[HeardTurn, ...]:
        found: list[HeardTurn] = []
        while self._next.start_s < end_s:
            found.append(self._next)
            self._next = next(self._turns)
        return tuple(found)

    @staticmethod
    def _along(dataset: ConversationSet, first: int) -> Iterator[HeardTurn]:
        began = 0
        for step in itertools.count():
            index = (first + step) % len(dataset)
            framed, ended = _framed(dataset, index), 0
            own = (turn for turn in dataset[index].turns if turn.speaker == "user")
            for turn, reply in zip(own, framed.turns, strict=True):
                yield HeardTurn(
                    utterance_id=turn.utterance_id,
                    start_s=(began + ended) / FRAME_RATE_HZ,
                    reply_due_s=(began + reply.start) / FRAME_RATE_HZ,
                )
                ended = reply.end
            began += len(framed)


def real_frames(dataset: ConversationSet, index: int, wanted: TurnFilter = every_turn) -> SymbolBlock:
    """The units of the assistant's channel; turns that are not wanted are left out with the silence before them."""
    framed = _framed(dataset, index)
    turns = [turn for turn in dataset[index].turns if turn.speaker == "assistant"]
    parts, ended = [np.zeros(0, np.int64)], 0
    for turn, place in zip(turns, framed.turns, strict=True):
        if wanted(turn):
            parts.append(framed.own[ended : place.end].flatten().numpy())
        ended = place.end
    return block_of_units(np.concatenate(parts))


def block_of_units(units: Symbols) -> SymbolBlock:
    return SymbolBlock(symbols=units, seconds=np.arange(len(units)) / UNIT_RATE_HZ, end_s=len(units) / UNIT_RATE_HZ)


def silent_units(codebook: UnitCodebook, seconds: float = PAUSE_S) -> Symbols:
    """Silence; by default the pause behind a reply."""
    return np.full(round(seconds * UNIT_RATE_HZ), silence_unit(codebook), np.int64)


def _framed(dataset: ConversationSet, index: int) -> FramedConversation:
    # No token is -1, and what is written in the data is not looked at.
    return frame_conversation(dataset[index], dataset, no_text_id=-1)


assert BLOCK_FRAMES * UNITS_PER_FRAME == 10 * UNIT_RATE_HZ
