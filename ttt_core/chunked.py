"""The dual form: a mini-batch at a time, no per-token weights ever materialised.

Legend: B batch, H heads, T tokens of the call, b mini-batch size, M mini-batches, d head_dim, w_l inner widths.

With theta_i = theta - c_i (G + sum_{j<=i} eta_j g_j), and g_j of map l the outer product of its input x_j and
output gradient e_j, the map applied to a query's activation u_i is
``u_i W + b - c_i (u_i G_W + G_b + sum_{j<=i} (u_i . x_j + 1) eta_j e_j)``: an attention-like product inside the
mini-batch (the 1 is the bias, a key dimension fixed at 1). The limit j <= i, a lower triangle with
its diagonal, keeps it causal; `TTTLayer.read_scores` is where it is drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ttt_core.commit import Carried, Commit
from ttt_core.inner_model import (
    InnerNorm,
    InnerWeights,
    choose_rows,
    combine,
    gelu,
    gradient_factors,
    gradient_sums,
    zeros_like,
)

ReadScores = Callable[[Tensor], Tensor]
"""From scores (..., b, b) of a mini-batch's queries i and inputs j to those that row i reads, zero elsewhere."""


class _Slots(NamedTuple):
    """Where the call's tokens stand in whole mini-batches, each row after the tokens already in its open one."""

    token_of_slot: Tensor | None  # (B, M b) index of the token in each slot, clamped; None: token t is in slot t
    is_filled: Tensor | None  # (B, M b) False where the slot holds no token of this call
    slot_of_token: Tensor | None  # (B, T)
    mini_batches: int
    is_complete: Tensor | list[bool]  # (B, M) or [M]: the row's mini-batch is full once this call is done


def scan(
    q: Tensor, k: Tensor, v: Tensor, step_sizes: Tensor,
    carried: Carried, sums: InnerWeights | None, open_tokens: Tensor | None, lengths: Tensor | None,
    row_scales: Tensor, norm: InnerNorm, commit: Commit, read_scores: ReadScores, checkpoint_group: int = 0,
) -> tuple[Tensor, Tensor, Carried, InnerWeights]:  # fmt: skip
    """T tokens at once; arguments and results as `ttt_core.sequential.scan`.

    `open_tokens` and `sums` None say that no row has an open mini-batch: then nothing is gathered.
    checkpoint_group: mini-batches recomputed together in the backward pass, 0 for none.
    """
    mini_batch_size = row_scales.shape[0]
    total_tokens = q.shape[2]
    slots = _lay_out(total_tokens, mini_batch_size, open_tokens, lengths, q.device)
    q, k, v, step_sizes = (_into_slots(tensor, slots, mini_batch_size) for tensor in (q, k, v, step_sizes))
    # What no state enters is computed for all mini-batches at once: (B, H, M, b, b), rows i, columns j.
    first_scores = read_scores(q @ k.mT + 1.0)

    # unbind and stack, not indexing: the backward of an index writes a full-size tensor per mini-batch.
    per_mini_batch = [tensor.unbind(dim=2) for tensor in (q, k, v, step_sizes, first_scores)]
    group = checkpoint_group if checkpoint_group and torch.is_grad_enabled() else 0
    outputs: list[Tensor] = []
    losses: list[Tensor] = []
    stride = group or slots.mini_batches
    for start in range(0, slots.mini_batches, stride):
        stop = min(start + stride, slots.mini_batches)
        parts = [list(tensors[start:stop]) for tensors in per_mini_batch]
        whole = slots.is_complete
        complete = whole[start:stop] if isinstance(whole, list) else whole[:, start:stop]
        arguments = (parts, carried, sums, complete, row_scales, norm, commit, read_scores, start * mini_batch_size)
        if group:
            result = checkpoint(_scan_mini_batches, *arguments, use_reentrant=False)
        else:
            result = _scan_mini_batches(*arguments)
        group_outputs, group_losses, carried, sums = result
        outputs += group_outputs
        losses += group_losses
    z = _out_of_slots(torch.stack(outputs, dim=2).flatten(2, 3), slots, total_tokens)
    loss = _out_of_slots(torch.stack(losses, dim=2).flatten(2, 3).unsqueeze(-1), slots, total_tokens).squeeze(-1)
    return z, loss, carried, zeros_like(carried.weights) if sums is None else sums


def _scan_mini_batches(
    parts: list[list[Tensor]], carried: Carried, sums: InnerWeights | None, is_complete: Tensor | list[bool],
    row_scales: Tensor, norm: InnerNorm, commit: Commit, read_scores: ReadScores, position: int,
) -> tuple[list[Tensor], list[Tensor], Carried, InnerWeights | None]:  # fmt: skip
    """Mini-batches in order, the first one starting at `position`.

    sums: what the open mini-batch holds before the first of them; None for nothing.
    """
    outputs, losses = [], []
    for index, (q, k, v, step_sizes, first_scores) in enumerate(zip(*parts, strict=True)):
        weights = carried.weights
        factors = gradient_factors(k, v, weights, norm)
        scaled = [step_sizes * gradient for gradient in factors.output_gradients]
        z = q + norm(_query(q, weights, sums, factors.inputs, scaled, first_scores, row_scales, read_scores))
        outputs.append(z)
        losses.append(factors.losses)
        added = gradient_sums(factors, step_sizes)
        seen = added if sums is None else combine(sums, added)
        complete = is_complete[index] if isinstance(is_complete, list) else is_complete[:, index]
        if complete is False:
            sums = seen
            continue
        plain = combine(weights, seen, scale=-row_scales[-1])
        committed = commit(carried, seen, plain, position + index * row_scales.shape[0])
        if complete is True:
            carried, sums = committed, None
        else:
            carried = committed.in_rows(complete, carried)
            sums = choose_rows(complete, zeros_like(seen), seen)
    return outputs, losses, carried, sums


def _query(
    q: Tensor, weights: InnerWeights, sums: InnerWeights | None, inputs: list[Tensor], scaled_gradients: list[Tensor],
    first_scores: Tensor, row_scales: Tensor, read_scores: ReadScores,
) -> Tensor:  # fmt: skip
    """f(q_i; theta_i) for every row i of a mini-batch; q (B, H, b, d)."""
    activation, z = q, q
    scale = row_scales[:, None]
    for index, (W, b) in enumerate(weights.maps):
        scores = first_scores if index == 0 else read_scores(activation @ inputs[index].mT + 1.0)
        change = scores @ scaled_gradients[index]
        if sums is not None:
            sum_W, sum_b = sums.maps[index]
            change = change + activation @ sum_W + sum_b
        z = activation @ W + b - scale * change
        activation = gelu(z)
    return z


def _lay_out(
    tokens: int, size: int, open_tokens: Tensor | None, lengths: Tensor | None, device: torch.device
) -> _Slots:
    if open_tokens is None and lengths is None:
        count = -(-tokens // size)
        return _Slots(None, None, None, count, [(m + 1) * size <= tokens for m in range(count)])
    # A stream at a boundary needs ceil(T / b) mini-batches; rows that start inside one may reach into one more.
    count = -(-tokens // size) if open_tokens is None else -(-(tokens + size - 1) // size)
    if open_tokens is None:
        assert lengths is not None
        open_tokens = torch.zeros_like(lengths)
    slot = torch.arange(count * size, device=device)
    token = slot[None] - open_tokens[:, None]
    last = tokens if lengths is None else lengths[:, None]
    reached = open_tokens + (tokens if lengths is None else lengths)
    ends = size * torch.arange(1, count + 1, device=device)
    return _Slots(
        token_of_slot=token.clamp(0, tokens - 1),
        is_filled=(token >= 0) & (token < last),
        slot_of_token=open_tokens[:, None] + torch.arange(tokens, device=device)[None],
        mini_batches=count,
        is_complete=reached[:, None] >= ends[None],
    )


def _into_slots(tensor: Tensor, slots: _Slots, size: int) -> Tensor:
    """(B, H, T, w) -> (B, H, M, b, w), zeros in the slots that hold no token."""
    if slots.token_of_slot is None:
        tensor = F.pad(tensor, (0, 0, 0, slots.mini_batches * size - tensor.shape[2]))
    else:
        assert slots.is_filled is not None
        index = slots.token_of_slot[:, None, :, None].expand(-1, tensor.shape[1], -1, tensor.shape[3])
        tensor = torch.where(slots.is_filled[:, None, :, None], tensor.gather(2, index), 0.0)
    return tensor.unflatten(2, (slots.mini_batches, size))


def _out_of_slots(tensor: Tensor, slots: _Slots, tokens: int) -> Tensor:
    """(B, H, M b, w) -> (B, H, T, w)."""
    if slots.slot_of_token is None:
        return tensor[:, :, :tokens]
    index = slots.slot_of_token[:, None, :, None].expand(-1, tensor.shape[1], -1, tensor.shape[3])
    return tensor.gather(2, index)
