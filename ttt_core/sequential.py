"""The definition: TTT one token at a time. Written to be read, and the step that decoding takes."""

from __future__ import annotations

import torch
from torch import Tensor

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
    weights: InnerWeights, sums: InnerWeights, open_tokens: Tensor, is_real: Tensor | None,
    row_scales: Tensor, norm: InnerNorm,
) -> tuple[Tensor, Tensor, InnerWeights, InnerWeights]:  # fmt: skip
    """One token of every row.

    q, k, v: (B, H, 1, d), rotated. step_size: (B, H, 1, 1). weights: at the start of the open mini-batch.
    sums: its gradient sums so far. open_tokens: (B,) how many tokens they cover. is_real: (B,) or None for all;
    a row that is not real keeps its weights and sums. row_scales: (b,), the c_i.
    Gives z (B, H, 1, d), the token's inner loss (B, H, 1), and the new weights and sums.
    """
    factors = gradient_factors(k, v, weights, norm)
    seen = combine(sums, gradient_sums(factors, step_size))
    seen_weights = combine(weights, seen, scale=-row_scales[open_tokens][:, None, None, None])
    z = q + norm(predict(q, seen_weights))

    closes = open_tokens == row_scales.shape[0] - 1
    next_weights = choose_rows(closes, seen_weights, weights)
    next_sums = choose_rows(closes, zeros_like(seen), seen)
    if is_real is not None:
        next_weights = choose_rows(is_real, next_weights, weights)
        next_sums = choose_rows(is_real, next_sums, sums)
    return z, factors.losses, next_weights, next_sums


def scan(
    q: Tensor, k: Tensor, v: Tensor, step_sizes: Tensor,
    weights: InnerWeights, sums: InnerWeights, open_tokens: Tensor, lengths: Tensor | None,
    row_scales: Tensor, norm: InnerNorm,
) -> tuple[Tensor, Tensor, InnerWeights, InnerWeights]:  # fmt: skip
    """`step` over T tokens: q, k, v (B, H, T, d), step_sizes (B, H, T, 1), the real tokens of a row first.

    lengths: (B,) real tokens per row, or None when all T are. Gives z (B, H, T, d), the inner losses (B, H, T)
    and the final weights and sums; z and losses behind a row's length are meaningless.
    """
    outputs, losses = [], []
    per_token = zip(*(tensor.split(1, dim=2) for tensor in (q, k, v, step_sizes)), strict=True)
    for t, (q_t, k_t, v_t, step_size) in enumerate(per_token):
        is_real = None if lengths is None else t < lengths
        place = (open_tokens + t) % row_scales.shape[0]
        z, loss, weights, sums = step(q_t, k_t, v_t, step_size, weights, sums, place, is_real, row_scales, norm)
        outputs.append(z)
        losses.append(loss)
    return torch.cat(outputs, dim=2), torch.cat(losses, dim=2), weights, sums
