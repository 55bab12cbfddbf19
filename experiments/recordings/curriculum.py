"""Curriculum sets: conversations whole, or divided between turns into pieces that carry the state on. Never cut.

A piece holds whole exchanges, as many as fit into the set's positions. What a position is depends on the backbone:

    heard    Llama-Omni: speech at 10 Hz in, text tokens out. Needs the words of what the assistant says.
    frames   Moshi, Qwen + Mimi: frames of 80 ms. Units or codes are enough; words stand in the text where known.
    read     Qwen text: the words of both. Needs the words of everything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from experiments.data.conversation_lines import PooledConversations
from experiments.data.conversations import Conversation, Split, Turn
from experiments.data.framing import FRAME_RATE_HZ, UNITS_PER_FRAME
from experiments.data.packing import default_speech_positions
from experiments.recordings.dataset import RecordedConversations, RecordedPool
from experiments.recordings.set_files import LISTENING_ID

CURRICULUM_POSITIONS = (8192, 16384, 32768, 65536)

Layout = Literal["heard", "frames", "read"]
LAYOUTS: dict[str, Layout] = {"llama-omni": "heard", "moshi": "frames", "qwen-mimi": "frames", "qwen-tts": "read"}
"""How each backbone counts positions."""


@dataclass(frozen=True, kw_only=True)
class Piece(Conversation):
    """Consecutive whole exchanges of a conversation. continues: the state of the piece before is to be carried on.

    positions: that it takes, before it is padded to whole mini-batches.
    """

    continues: bool
    positions: int

    @property
    def begins_here(self) -> bool:
        return not self.continues


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """Exchanges of a conversation that are in no piece, and why. seconds: of their turns."""

    conversation: str
    exchanges: int
    seconds: float
    reason: str


@dataclass(frozen=True, kw_only=True)
class PieceSpec:
    """What a curriculum set is made of, as a run logs it. data_digest: of the prepared set."""

    positions: int
    layout: Layout
    mini_batch_size: int
    n_mels: int
    data_digest: str

    def digest(self) -> str:
        return f"{self.data_digest}-{self.layout}-{self.positions}-{self.mini_batch_size}"


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Exchanges [first, end) of a conversation."""

    conversation: int
    first: int
    end: int
    continues: bool
    positions: int


class PieceSet(PooledConversations):
    """The pieces of a prepared set, in order; those of a conversation follow each other. `pieces_of` makes it.

    It has what the loaders of the backbones ask of a set of conversations.
    """

    pool: RecordedPool

    def __init__(
        self, recorded: RecordedConversations, spec: PieceSpec, places: list[_Place], left_out: tuple[LeftOut, ...]
    ) -> None:
        super().__init__(recorded.pool)
        self.recorded = recorded
        self.spec = spec
        self.left_out = left_out
        self._places = places
        self._splits: dict[Split, set[int]] = {
            "train": set(recorded.split_indices("train")),
            "validation": set(recorded.split_indices("validation")),
        }

    @property
    def dropped(self) -> tuple[()]:
        """Of bad sound: none, it was left out when the set was prepared. See `left_out`, and the set's card."""
        return ()

    def split_indices(self, split: Split) -> list[int]:
        """Indices of the pieces of one split."""
        return [index for index, place in enumerate(self._places) if place.conversation in self._splits[split]]

    def chains(self, split: Split) -> list[list[int]]:
        """Indices of the pieces of one split, chain by chain: the state is carried on along each."""
        chains: list[list[int]] = []
        for index in self.split_indices(split):
            if self._places[index].continues:
                chains[-1].append(index)
            else:
                chains.append([index])
        return chains

    def beginnings(self, split: Split, count: int) -> PieceSet:
        """Of `count` conversations spread over a split, all where there are fewer, the first piece alone."""
        first = [chain[0] for chain in self.chains(split)]
        count = min(count, len(first))
        chosen = [first[place * len(first) // count] for place in range(count)]
        return PieceSet(self.recorded, self.spec, [self._places[index] for index in chosen], self.left_out)

    def positions(self, index: int) -> int:
        """That a piece takes, before padding."""
        return self._places[index].positions

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Piece:
        if not 0 <= index < len(self):
            raise IndexError(f"piece {index} of {len(self)}")
        place = self._places[index]
        whole = self.recorded[place.conversation]
        turns = _from_zero(whole.turns, 2 * place.first, 2 * place.end, place.continues)
        return Piece(
            name=f"{whole.name}[{place.first}:{place.end}]",
            split=whole.split,
            turns=turns,
            facts=(),
            continues=place.continues,
            positions=place.positions,
        )


def pieces_of(
    recorded: RecordedConversations,
    positions: int,
    layout: Layout,
    mini_batch_size: int = 64,
    speech_positions: Callable[[int], int] = default_speech_positions,
) -> PieceSet:
    """The curriculum set of so many positions, rounded down to whole mini-batches.

    speech_positions: how many a model makes of so many mel frames (layout "heard"). Exchanges that the layout cannot
    use, or that alone take more than `positions`, are in `left_out`; the piece after one begins anew.

    Raises ValueError where nothing is left.
    """
    if mini_batch_size < 1 or positions < mini_batch_size:
        raise ValueError(f"positions is {positions}, mini_batch_size {mini_batch_size}; give at least one mini-batch")
    counter = _COUNTERS[layout](recorded, speech_positions)
    limit = positions - positions % mini_batch_size
    places: list[_Place] = []
    left_out: list[LeftOut] = []
    for number, conversation in enumerate(recorded):
        for found in _divided(conversation, number, counter, limit):
            if isinstance(found, LeftOut):
                left_out.append(found)
            else:
                places.append(found)
    if not places:
        reasons = "; ".join(sorted({one.reason for one in left_out})[:3])
        raise ValueError(f"{recorded.folder} has nothing for layout {layout!r} at {positions} positions: {reasons}")
    spec = PieceSpec(
        positions=positions,
        layout=layout,
        mini_batch_size=mini_batch_size,
        n_mels=recorded.codebook.n_mels,
        data_digest=recorded.state.digest,
    )
    return PieceSet(recorded, spec, places, _merged(left_out))


class _Counter:
    """Positions of the exchanges of a conversation, told one after the other."""

    opening = 0
    """Positions in front of the first exchange of a piece that begins a conversation."""

    def __init__(self, recorded: RecordedConversations, speech_positions: Callable[[int], int]) -> None:
        self.recorded = recorded
        self.speech_positions = speech_positions

    def refusal(self, user: Turn, assistant: Turn) -> str:
        """Why the layout cannot use an exchange, or ""."""
        raise NotImplementedError

    def positions(self, user: Turn, assistant: Turn, ended_s: float | None) -> int:
        """ended_s: when the turn before ended; None where the exchange is the first of a conversation's piece."""
        raise NotImplementedError

    def tokens(self, text: str) -> int:
        return len(self.recorded.tokenizer.encode(text))


class _Heard(_Counter):
    opening = 1

    def refusal(self, user: Turn, assistant: Turn) -> str:
        return _wordless(assistant)

    def positions(self, user: Turn, assistant: Turn, ended_s: float | None) -> int:
        heard = self.speech_positions(self.recorded.pool.mel_frames(user.utterance_id))
        return 1 + heard + 2 + self.tokens(assistant.text)


class _Read(_Counter):
    opening = 1

    def refusal(self, user: Turn, assistant: Turn) -> str:
        return _wordless(user) or _wordless(assistant)

    def positions(self, user: Turn, assistant: Turn, ended_s: float | None) -> int:
        return 1 + self.tokens(user.text) + 2 + self.tokens(assistant.text)


class _Frames(_Counter):
    def refusal(self, user: Turn, assistant: Turn) -> str:
        return ""

    def positions(self, user: Turn, assistant: Turn, ended_s: float | None) -> int:
        before = 1 if ended_s is None else max(1, round((user.start_s - ended_s) * FRAME_RATE_HZ))
        between = max(1, round((assistant.start_s - user.end_s) * FRAME_RATE_HZ))
        written = self.tokens(assistant.text) + 1
        return before + self._frames(user) + max(between, written) + self._frames(assistant)

    def _frames(self, turn: Turn) -> int:
        return -(-self.recorded.pool.unit_count(turn.utterance_id) // UNITS_PER_FRAME)


_COUNTERS: dict[Layout, type[_Counter]] = {"heard": _Heard, "frames": _Frames, "read": _Read}


def _wordless(turn: Turn) -> str:
    return "" if turn.text or turn.utterance_id == LISTENING_ID else "its words are not known: no transcript"


def _divided(conversation: Conversation, number: int, counter: _Counter, limit: int) -> Iterator[_Place | LeftOut]:
    """The pieces of a conversation in order, and its exchanges that are in none."""
    exchanges = list(zip(conversation.turns[::2], conversation.turns[1::2], strict=True))
    piece = _Place(conversation=number, first=0, end=0, continues=False, positions=counter.opening)
    for place, (user, assistant) in enumerate(exchanges):
        before_s = exchanges[place - 1][1].end_s if piece.continues or piece.end > piece.first else None
        reason = counter.refusal(user, assistant)
        cost = 0 if reason else counter.positions(user, assistant, before_s)
        if not reason and piece.positions + cost > limit and piece.end > piece.first:
            yield piece
            piece = replace(piece, first=place, end=place, continues=True, positions=0)
        if not reason and piece.positions + cost > limit:
            reason = f"an exchange takes more than {limit} positions"
        if reason:
            if piece.end > piece.first:
                yield piece
            seconds = assistant.end_s - assistant.start_s + user.end_s - user.start_s
            yield LeftOut(conversation=conversation.name, exchanges=1, seconds=seconds, reason=reason)
            piece = _Place(
                conversation=number, first=place + 1, end=place + 1, continues=False, positions=counter.opening
            )
        else:
            piece = replace(piece, end=place + 1, positions=piece.positions + cost)
    if piece.end > piece.first:
        yield piece


def _from_zero(turns: tuple[Turn, ...], first: int, end: int, continues: bool) -> tuple[Turn, ...]:
    """Turns [first, end) with times from the end of the turn before, or where a conversation begins, from their own."""
    zero_s = turns[first - 1].end_s if continues else turns[first].start_s
    return tuple(replace(turn, start_s=turn.start_s - zero_s, end_s=turn.end_s - zero_s) for turn in turns[first:end])


def _merged(left_out: list[LeftOut]) -> tuple[LeftOut, ...]:
    """One entry for each conversation and reason."""
    merged: dict[tuple[str, str], LeftOut] = {}
    for one in left_out:
        key = one.conversation, one.reason
        before = merged.get(key)
        merged[key] = (
            one
            if before is None
            else replace(before, exchanges=before.exchanges + 1, seconds=before.seconds + one.seconds)
        )
    return tuple(merged.values())
