"""A TTT layer as a streaming module of Moshi: called `self_attn(x, x, x)`, its state preallocated, written in place.

In place because a CUDA graph replays onto fixed addresses; the maths stays functional in `TTTLayer`, and storing is
done here. Legend: B rows of the stream, T steps of a call, C width.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from moshi.modules.streaming import State, StreamingModule
from torch import Tensor, nn

from ttt_core import InnerWeights, TTTLayer, TTTState


def named_tensors(state: TTTState) -> dict[str, Tensor]:
    """Every tensor that belongs to the rows of a TTTState, each (B, ...), by name; not the learned weights."""
    tensors: dict[str, Tensor] = {}
    for field in fields(state):
        value = vars(state)[field.name]
        if field.name in ("initial", "config") or value is None:
            continue
        if isinstance(value, Tensor):
            tensors[field.name] = value
        elif isinstance(value, InnerWeights):
            parts = zip(InnerWeights._fields, value.tensors, strict=False)
            tensors |= {f"{field.name}.{name}": part for name, part in parts}
        else:
            assert isinstance(value, dict), f"TTTState.{field.name} is a {type(value).__name__}: teach this function"
            tensors |= {f"{field.name}.{name}": part for name, part in value.items()}
    return tensors


@dataclass
class TTTStreamState(State):
    """What B streams left in one TTT layer. The tensors of `held` are this object's own and change in place."""

    held: TTTState

    @torch.no_grad()
    def store(self, after: TTTState) -> None:
        """Take over a newer state in the rows that execute; a row that does not may have computed NaN."""
        new = named_tensors(after)
        for name, kept in named_tensors(self.held).items():
            rows = self.exec_mask.view(-1, *[1] * (kept.dim() - 1))
            kept.copy_(torch.where(rows, new[name], kept))

    @torch.no_grad()
    def reset(self, reset_mask: Tensor) -> None:
        """Start the rows of the (B,) mask anew, from the learned weights as they are now."""
        super().reset(reset_mask)
        new = named_tensors(self.held.reset(reset_mask))
        for name, kept in named_tensors(self.held).items():
            kept.copy_(new[name])


@dataclass
class Carry:
    """The state that batched calls of one layer start from (None: the learned weights) and leave behind."""

    state: TTTState | None


class StreamingTTT(StreamingModule[TTTStreamState]):
    """TTT in the place of Moshi's self-attention, or beside it.

    base_lr: inner step size of the calls to come, a number or a tensor of one; None for the config's.
    carry: set while states are carried over batched calls (`carried_states`), else None.
    """

    def __init__(self, ttt: TTTLayer) -> None:
        super().__init__()
        self.ttt = ttt
        self.base_lr: float | Tensor | None = None
        self.carry: Carry | None = None
        self.training = ttt.training

    @torch.no_grad()
    def _init_streaming_state(self, batch_size: int) -> TTTStreamState:
        initial = self.ttt.initial_state(batch_size)
        # clone: the initial weights are expanded parameters, which in-place writes would reach.
        return TTTStreamState(batch_size, initial.count.device, held=initial.clone())

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C) in the model's dtype; query, key and value are the same vectors."""
        assert query is key and key is value, "TTT stands in for self-attention only"
        state = self._streaming_state
        if state is not None:
            out, _, after = self.ttt(query, state.held, base_lr=self.base_lr)
            state.store(after)
        elif self.carry is not None:
            out, _, self.carry.state = self.ttt(query, self.carry.state, base_lr=self.base_lr)
        else:
            out = self.ttt(query, base_lr=self.base_lr)[0]
        return out.to(query.dtype)


def streaming_modules(root: nn.Module) -> list[StreamingModule]:
    """Every streaming module from `root` down, detached ones too."""
    return [module for module in root.modules() if isinstance(module, StreamingModule)]


def is_streaming(root: nn.Module) -> bool:
    """True when any streaming module from `root` down holds a streaming state."""
    return any(module.is_streaming for module in streaming_modules(root))


def forget_cached_children(root: nn.Module) -> None:
    """Make every streaming module look for its streaming children again; one that was added would never stream."""
    for module in streaming_modules(root):
        module._cached_children = None
