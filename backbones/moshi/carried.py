"""Training over segments: TTT states carried from one batched call to the next, with gradients.

What is carried is TTT's state alone. Attention starts anew with every segment: it sees nothing before the segment, and
its positions count from the segment's start. A segment of at least the attention's context, with the loss left out of
its first positions, keeps that away from the result; a model whose every layer is TTT has none of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from moshi.models.lm import LMModel
from moshi.models.lm_utils import _delay_sequence
from torch import Tensor

from backbones.moshi.mount import require_lm, require_not_streaming, ttt_modules
from backbones.moshi.streaming_ttt import Carry
from ttt_core import TTTState


class CarriedStates:
    """The states that calls within `carried_states` have left so far: {layer index: TTTState}."""

    def __init__(self, carries: Mapping[int, Carry]) -> None:
        self._carries = carries

    @property
    def states(self) -> dict[int, TTTState]:
        """New with every call, attached to its graph; empty before the first one of a fresh start."""
        return {layer: carry.state for layer, carry in self._carries.items() if carry.state is not None}


@contextmanager
def carried_states(lm: LMModel, states: Mapping[int, TTTState] | None = None) -> Iterator[CarriedStates]:
    """Within it, batched calls of the model start from the given states, and each goes on where the last one stopped.

    states: {layer index: TTTState} of every mounted layer, as a call before left them; `detach()` each where
        backpropagation is to stop, `reset(rows)` where a conversation ends. None starts from the learned weights.

    Functional: the given states are not changed. Raises ValueError for a model that is streaming or without TTT, states
    of other layers, and gradient checkpointing of whole layers (its second forward would run outside of this context).
    """
    require_lm(lm)
    require_not_streaming(lm, "carry states over batched calls")
    modules = ttt_modules(lm)
    if not modules:
        raise ValueError("the model has no TTT layers whose states could be carried: call mount(lm, layers=...) first")
    if states is not None and set(states) != set(modules):
        raise ValueError(f"states are of layers {sorted(states)}, the model's TTT layers are {sorted(modules)}")
    if lm.transformer.checkpointing:
        raise ValueError(
            "gradient_checkpointing recomputes layers after the states are gone: build the model without it and set "
            "TTTConfig(checkpoint_group=...)"
        )
    if any(module.carry is not None for module in modules.values()):
        raise ValueError("the model's states are being carried already: leave the outer carried_states first")
    carries = {layer: Carry(None if states is None else states[layer]) for layer in modules}
    for layer, module in modules.items():
        module.carry = carries[layer]
    try:
        yield CarriedStates(carries)
    finally:
        for module in modules.values():
            module.carry = None


def lm_forward_with_states(
    lm: LMModel, sequence: Tensor, states: Mapping[int, TTTState] | None = None
) -> tuple[Tensor, Tensor, dict[int, TTTState]]:
    """One segment: hidden (B, T, C) for the depth transformer, text logits (B, 1, T, text_card), and the new states.

    sequence: (B, K, T) of a `delayed_sequence`, as the model sees it.
    """
    with carried_states(lm, states) as carried:
        hidden, text_logits = lm.forward_text(sequence)
    return hidden, text_logits, carried.states


@torch.no_grad()
def delayed_sequence(lm: LMModel, codes: Tensor) -> Tensor:
    """(B, K, T + 1): what `LMModel.forward` makes of codes (B, K, T), the initial tokens and then the delayed codes.

    The model reads [:, :, :-1] and predicts [:, :, 1:]. `LMModel.forward` itself begins every call with the initial
    tokens, so a conversation that is trained on in segments is delayed once as a whole and cut here.
    """
    if codes.dim() != 3 or codes.shape[1] != lm.num_codebooks:
        raise ValueError(f"codes must have shape (batch, {lm.num_codebooks}, time), got {tuple(codes.shape)}")
    initial = lm._get_initial_token().expand(codes.shape[0], -1, -1)
    return torch.cat([initial, _delay_sequence(lm.delays, codes, initial)], dim=2)
