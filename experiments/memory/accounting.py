"""What one conversation holds, in parts, and what follows for any length: arithmetic on what the modules say."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from backbones.mounting import MemoryDescription
from experiments.memory.configuration import Backbone
from ttt_core import TTTLayer

SECONDS_PER_MINUTE = 60
SECONDS_PER_HOUR = 3600


@dataclass(frozen=True, kw_only=True)
class StateBytes:
    """One TTT layer's state of one stream: the inner weights, the sums of the open mini-batch, and the token count."""

    inner_weights: int
    open_mini_batch: int
    rest: int

    @property
    def total(self) -> int:
        return self.inner_weights + self.open_mini_batch + self.rest


@dataclass(frozen=True, kw_only=True)
class ConversationMemory:
    """Bytes of one conversation (a row of a batch), by what holds them.

    layers: keys, values, rings, windows and TTT states of the language model.
    hidden_state_bytes_per_position: what generation keeps of every position besides.
    generator_bytes_per_said_token, generator_bytes_fixed: keys and values of Llama-Omni's speech generator, without a
        window and with a filled one; 0 in all other models.
    state: of one TTT layer; None without TTT. ttt_layers: how many there are.
    """

    layers: MemoryDescription
    hidden_state_bytes_per_position: int
    generator_bytes_per_said_token: int
    generator_bytes_fixed: int
    state: StateBytes | None
    ttt_layers: int

    @property
    def bytes_per_position(self) -> int:
        """That every position of the language model adds for good."""
        return self.layers.bytes_per_position + self.hidden_state_bytes_per_position

    @property
    def bytes_fixed(self) -> int:
        """Of the language model, however long the conversation is."""
        return self.layers.bytes_fixed

    @property
    def is_bounded(self) -> bool:
        """Language model and speech generator together take the same memory however long it gets."""
        return self.bytes_per_position == 0 and self.generator_bytes_per_said_token == 0

    def bytes_at(self, positions: int) -> int:
        """Of the language model after that many positions, windows filled."""
        return self.bytes_fixed + positions * self.bytes_per_position

    def bytes_of_run(self, positions: int, said_tokens: int) -> int:
        """Of all parts, after so many positions of which so many were said."""
        generator = self.generator_bytes_fixed + said_tokens * self.generator_bytes_per_said_token
        return self.bytes_at(positions) + generator

    def bytes_per_second(self, backbone: Backbone) -> float:
        """That every second of conversation adds, in all parts."""
        said = backbone.said_share * self.bytes_per_second_said(backbone)
        return said + (1 - backbone.said_share) * self.bytes_per_second_heard(backbone)

    def bytes_per_second_said(self, backbone: Backbone) -> float:
        per_token = self.bytes_per_position + self.generator_bytes_per_said_token
        return backbone.positions_per_second_said * per_token

    def bytes_per_second_heard(self, backbone: Backbone) -> float:
        return backbone.positions_per_second_heard * self.bytes_per_position

    def bytes_after(self, seconds: float, backbone: Backbone) -> float:
        """Of all parts after that much conversation."""
        return self.bytes_fixed + self.generator_bytes_fixed + seconds * self.bytes_per_second(backbone)


class Stream(Protocol):
    """One batch of conversations under way. held: what keeps it, to be looked through for tensors."""

    @property
    def held(self) -> object: ...

    def advance(self, positions: int) -> None:
        """Reads so many more random positions in one call."""
        ...

    def say(self, tokens: int) -> None:
        """Makes the speech of so many tokens, where the model has a part for that."""
        ...


class Subject(Protocol):
    """A model with an arrangement mounted, on any device; on the meta device it can be described and not streamed.

    context_positions: what the published model can keep apart. holds_all_at_once: memory is allocated before the first
    position, so that how many are read makes no difference.
    """

    memory: ConversationMemory
    weights_bytes: int
    context_positions: int
    holds_all_at_once: bool

    def open_stream(self, rows: int) -> AbstractContextManager[Stream]: ...

    def weights(self) -> Iterator[object]:
        """Every parameter and buffer: what a stream may refer to and does not hold."""
        ...


def state_bytes(layers: dict[int, TTTLayer]) -> StateBytes | None:
    """Of one of the TTT layers, which are alike; None without any."""
    if not layers:
        return None
    states = [layer.initial_state(1) for layer in layers.values()]
    assert len({state.nbytes for state in states}) == 1, "TTT layers of one arrangement are alike"
    state = states[0]
    weights, sums = (sum(part.nbytes for part in parts.tensors) for parts in (state.weights, state.sums))
    return StateBytes(inner_weights=weights, open_mini_batch=sums, rest=state.nbytes - weights - sums)
