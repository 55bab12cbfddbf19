"""Runs a model over fact streams: all at once, one position a call, or with its own words read back.

Legend: N streams, T positions, V text tokens.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from moshi.models.lm import LMGen, LMModel
from torch import Tensor

MASK_BYTES_PER_PAIR = 19
"""What the package's batched attention takes for every pair of positions of a stream (its mask and the steps to it)."""

MASK_BYTES_AT_ONCE = 2e9


def model_inputs(lm: LMModel, codes: Tensor) -> Tensor:
    """(N, streams, T): what the model reads at every position, its initial token first. codes (N, streams, T)."""
    return torch.cat([lm._get_initial_token().expand(codes.shape[0], -1, -1), codes[:, :, :-1]], dim=2)


@torch.no_grad()
def streamed_logits(lm: LMModel, codes: Tensor, before_step: Callable[[int], None] | None = None) -> Tensor:
    """(N, T, V) text logits, teacher-forced, one position a call through the package's streaming.

    before_step: called with the position before each call, while the model streams.
    """
    inputs = model_inputs(lm, codes)
    logits = []
    with lm.streaming(codes.shape[0]):
        for position in range(codes.shape[2]):
            if before_step is not None:
                before_step(position)
            logits.append(lm.forward_text(inputs[:, :, position : position + 1])[1][:, 0])
    return torch.cat(logits, dim=1)


@torch.no_grad()
def batched_logits(lm: LMModel, codes: Tensor) -> Tensor:
    """(N, T, V) text logits, teacher-forced, all positions in one call; as many streams at once as memory bears."""
    rows = max(1, int(MASK_BYTES_AT_ONCE / (MASK_BYTES_PER_PAIR * codes.shape[2] ** 2)))
    return torch.cat([lm.forward_text(part)[1][:, 0] for part in model_inputs(lm, codes).split(rows)])


@torch.no_grad()
def free_running(lm: LMModel, heard: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Logits (N, T, V) and the text (N, T) that the model says itself, while it hears `heard` (N, heard streams, T).

    Through the package's own `LMGen`, sampling from the model's distribution as it is (temperature 1, all tokens).
    """
    seen: list[Tensor] = []
    generator = LMGen(lm, use_sampling=True, temp_text=1.0, top_k_text=0, on_text_logits_hook=seen.append)
    said: list[Tensor] = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        with generator.streaming(heard.shape[0]):
            for position in range(heard.shape[2]):
                # What a call is given is read at its own offset: the position before, and nothing at the first.
                given = heard[:, :, max(position - 1, 0)].unsqueeze(2)
                out = generator.step(given)
                assert out is not None
                said.append(out[:, 0])
    return torch.cat([logits[:, 0] for logits in seen], dim=1), torch.cat(said, dim=1)
