"""The definition: TTT one token at a time. Written to be read, and the step that decoding takes."""

from __future__ import annotations

import torch
from torch import Tensor

from ttt_core.commit import Carried, Commit
from ttt_core.inner_model import (
    InnerNorm,
    InnerWeights,
    choose_rows,
    combine,
    gradient_factors,
    gradient_sums,
    predict,
    zeros_like,
)


def step(
    q: Tensor, k: Tensor, v: Tensor, step_size: Tensor,
    carried: Carried, sums: InnerWeights, position: Tensor, is_real: Tensor | None,
    row_scales: Tensor, norm: InnerNorm, commit: Commit,
) -> tuple[Tensor, Tensor, Carried, InnerWeights]:  # fmt: skip
    """One token of every row.

    q, k, v: (B, H, 1, d), rotated. step_size: (B, H, 1, 1). carried: at the start of the open mini-batch.
    sums: its gradient sums so far. position: (B,) of the token, as in `CommitPlace`; modulo b, it is how many tokens
    the sums cover. is_real: (B,) or None for all; a row that is not real keeps what it has. row_scales: (b,), the c_i.
    Gives z (B, H, 1, d), the token's inner loss (B, H, 1), and what is carried and summed from here on.
    """
    row = position % row_scales.shape[0]
    factors = gradient_factors(k, v, carried.weights, norm)
    seen = combine(sums, gradient_sums(factors, step_size))
    seen_weights = combine(carried.weights, seen, scale=-row_scales[row][:, None, None, None])
    z = q + norm(predict(q, seen_weights))

    closes = row == row_scales.shape[0] - 1
    after = commit(carried, seen, seen_weights, position).in_rows(closes, carried)
    next_sums = choose_rows(closes, zeros_like(seen), seen)
    if is_real is not None:
        after = after.in_rows(is_real, carried)
        next_sums = choose_rows(is_real, next_sums, sums)
    return z, factors.losses, after, next_sums


def scan(
    q: Tensor, k: Tensor, v: Tensor, step_sizes: Tensor,
    carried: Carried, sums: InnerWeights, open_tokens: Tensor, lengths: Tensor | None,
    row_scales: Tensor, norm: InnerNorm, commit: Commit,
) -> tuple[Tensor, Tensor, Carried, InnerWeights]:  # fmt: skip
    """`step` over T tokens: q, k, v (B, H, T, d), step_sizes (B, H, T, 1), the real tokens of a row first.

    open_tokens: (B,) tokens already in the open mini-batch. lengths: (B,) real tokens per row, or None when all T are.
    Gives z (B, H, T, d), the inner losses (B, H, T) and what is carried and summed at the end; z and losses behind a
    row's length are meaningless.
    """
    outputs, losses = [], []
    per_token = zip(*(tensor.split(1, dim=2) for tensor in (q, k, v, step_sizes)), strict=True)
    for t, (q_t, k_t, v_t, step_size) in enumerate(per_token):
        is_real = None if lengths is None else t < lengths
        z, loss, carried, sums = step(
            q_t, k_t, v_t, step_size, carried, sums, open_tokens + t, is_real, row_scales, norm, commit
        )
        outputs.append(z)
        losses.append(loss)
    return torch.cat(outputs, dim=2), torch.cat(losses, dim=2), carried, sums
