"""Sliding-window attention with pinned sinks, in memory that grows with T x window and never with T x T.

The query at real position t of its row sees the keys u with t - window < u <= t, and the first `sinks` real tokens
of the row. Once a sink has left the window it is re-indexed to stand right before it (StreamingLLM, Xiao et al.
2023): rotary positions are relative, so instead of keeping unrotated keys the query is rotated twice, at its own
position for the window's keys and at min(t, sinks + window - 1) for sinks, whose keys are rotated at 0..sinks-1.

Legend: B batch, T tokens of the call, H query heads, K key/value heads, G = H / K, d head_dim, W window, S sinks,
R reach (keys a query of this call can see at most: W, or fewer when fewer exist), Q queries per block, N blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

# (a tensor for dtype and device, positions (B or 1, n)) -> cos, sin, each (B or 1, n, d)
Rotary = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
SMALLEST_BLOCK = 32


@dataclass(frozen=True)
class WindowMemory:
    """What a windowed attention keeps of B streams: bounded, never changed in place.

    keys, values: (B, K, W, d), the most recent real token last, keys rotated at their own positions.
    sink_keys, sink_values: (B, K, S, d), keys rotated at 0..S-1.
    count: (B,) int64 real tokens seen; entries that a row has not filled yet are zeros and never attended to.
    """

    keys: Tensor
    values: Tensor
    sink_keys: Tensor
    sink_values: Tensor
    count: Tensor

    @staticmethod
    def empty(like_keys: Tensor, window: int, sinks: int) -> WindowMemory:
        """Memory of streams before their first token; `like_keys` (B, K, any, d) gives sizes, dtype and device."""
        batch, heads, _, dim = like_keys.shape
        recent, pinned = (like_keys.new_zeros(batch, heads, size, dim) for size in (window, sinks))
        count = torch.zeros(batch, dtype=torch.int64, device=like_keys.device)
        return WindowMemory(recent, recent, pinned, pinned, count)

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in ("keys", "values", "sink_keys", "sink_values", "count")}

    @property
    def nbytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())

    def map(self, change: Callable[[Tensor], Tensor]) -> WindowMemory:
        return WindowMemory(**{name: change(tensor) for name, tensor in self.tensors.items()})

    def reset(self, rows: Tensor) -> WindowMemory:
        """Forget the rows that are True in the (B,) mask."""

        def cleared(tensor: Tensor) -> Tensor:
            return torch.where(rows.view(-1, *[1] * (tensor.dim() - 1)), torch.zeros_like(tensor), tensor)

        return self.map(cleared)


@dataclass(frozen=True)
class _Tokens:
    """The call's tokens with every row's real ones in front, so that padding anywhere is a matter of row lengths."""

    q: Tensor  # (B, H, T, d) rotated at the tokens' own positions
    k: Tensor  # (B, K, T, d)
    q_unrotated: Tensor
    k_unrotated: Tensor
    v: Tensor
    lengths: Tensor | None  # (B,) real tokens, None when all are


def windowed_attention(
    q: Tensor, k: Tensor, v: Tensor, position_embeddings: tuple[Tensor, Tensor], rotary: Rotary,
    memory: WindowMemory | None, window: int, sinks: int, real_tokens: Tensor | None, scaling: float,
    dropout: float = 0.0,
) -> tuple[Tensor, WindowMemory]:  # fmt: skip
    """Attention outputs (B, H, T, d) of unrotated q (B, H, T, d), k and v (B, K, T, d), and the memory after them.

    position_embeddings: cos and sin of the tokens' own positions, as the decoder hands them to its layers.
    memory: of the tokens before; None for none. It is not changed.
    real_tokens: (B, T) bool, None for all. Padding gives zeros, is seen by no one and takes no place in the window.
    """
    tokens = _pack(q, k, v, position_embeddings, real_tokens)
    before = WindowMemory.empty(k, window, sinks) if memory is None else memory
    after = _remember(before, tokens, rotary, real_tokens)
    reach = min(window, tokens.k.shape[2]) if memory is None else window
    # Without a past, a call no longer than the window cannot have lost a sink from it.
    pinned = None if sinks == 0 or (memory is None and tokens.k.shape[2] <= window) else after
    out = _attend_in_blocks(tokens, before, pinned, rotary, window, reach, scaling, dropout)
    if real_tokens is None:
        return out, after
    if real_tokens.shape[1] > 1:
        place = (real_tokens.long().cumsum(dim=1) - 1).clamp_min(0)
        out = out.gather(2, place[:, None, :, None].expand_as(out))
    return torch.where(real_tokens[:, None, :, None], out, 0.0), after


def _pack(
    q: Tensor, k: Tensor, v: Tensor, position_embeddings: tuple[Tensor, Tensor], real_tokens: Tensor | None
) -> _Tokens:
    cos, sin = position_embeddings
    rotated_q, rotated_k = apply_rotary_pos_emb(q, k, cos, sin)
    parts = (rotated_q, rotated_k, q, k, v)
    if real_tokens is None:
        return _Tokens(*parts, lengths=None)
    lengths = real_tokens.sum(dim=1)
    if q.shape[2] > 1:
        order = torch.argsort((~real_tokens).to(torch.int8), dim=1, stable=True)[:, None, :, None]
        parts = tuple(part.gather(2, order.expand_as(part)) for part in parts)
    return _Tokens(*parts, lengths=lengths)


def _remember(before: WindowMemory, tokens: _Tokens, rotary: Rotary, real_tokens: Tensor | None) -> WindowMemory:
    """The memory once the call's real tokens are in it."""
    added = tokens.k.shape[2] if tokens.lengths is None else tokens.lengths
    window, sinks = before.keys.shape[2], before.sink_keys.shape[2]
    after = replace(
        before,
        keys=_last(before.keys, tokens.k, tokens.lengths, window),
        values=_last(before.values, tokens.v, tokens.lengths, window),
        count=before.count + added,
    )
    if sinks == 0:
        return after
    slots = torch.arange(sinks, device=tokens.k.device)
    source = slots[None] - before.count[:, None]
    limit = tokens.k.shape[2] if tokens.lengths is None else tokens.lengths[:, None]
    is_new = ((source >= 0) & (source < limit))[:, None, :, None]
    index = source.clamp(0, tokens.k.shape[2] - 1)[:, None, :, None]
    new_keys = tokens.k_unrotated.gather(2, index.expand_as(before.sink_keys))
    new_values = tokens.v.gather(2, index.expand_as(before.sink_values))
    new_keys = _rotate(new_keys, rotary(new_keys, slots[None]))
    return replace(
        after,
        sink_keys=torch.where(is_new, new_keys, before.sink_keys),
        sink_values=torch.where(is_new, new_values, before.sink_values),
    )


def _last(past: Tensor, new: Tensor, lengths: Tensor | None, window: int) -> Tensor:
    """(B, K, W, d): the last W entries of each row's past and its real new tokens."""
    tokens = new.shape[2]
    if tokens == 1:
        rolled = torch.cat([past[:, :, 1:], new], dim=2)
        return rolled if lengths is None else torch.where(lengths[:, None, None, None] > 0, rolled, past)
    joined = torch.cat([past, new], dim=2)
    if lengths is None:
        # A copy, not a view: a view would keep the whole prompt's keys alive.
        return joined[:, :, tokens:].clone()
    index = lengths[:, None] + torch.arange(window, device=new.device)[None]
    return joined.gather(2, index[:, None, :, None].expand_as(past))


def _attend_in_blocks(
    tokens: _Tokens, before: WindowMemory, pinned: WindowMemory | None, rotary: Rotary, window: int, reach: int,
    scaling: float, dropout: float,
) -> Tensor:  # fmt: skip
    """Queries in blocks of Q, each block seeing the R - 1 keys before its first query and its own."""
    batch, heads, length, dim = tokens.q.shape
    kv_heads = tokens.k.shape[1]
    # Half a window: whole windows compute a third more masked scores, quarters copy the keys five times over.
    block = min(length, max(reach // 2, SMALLEST_BLOCK))
    blocks = -(-length // block)
    padding = blocks * block - length

    def key_blocks(past: Tensor, new: Tensor) -> Tensor:
        """(B, N, K, Q + R - 1, d)"""
        joined = F.pad(torch.cat([past[:, :, past.shape[2] - reach + 1 :], new], dim=2), (0, 0, 0, padding))
        return joined.unfold(2, block + reach - 1, block).permute(0, 2, 1, 4, 3)

    def query_blocks(query: Tensor) -> Tensor:
        """(B, N, K, G Q, d): the G query heads that share a key head stand one after the other."""
        grouped = F.pad(query, (0, 0, 0, padding)).view(batch, kv_heads, heads // kv_heads, blocks, block, -1)
        return grouped.permute(0, 3, 1, 2, 4, 5).flatten(3, 4)

    q, k, v = query_blocks(tokens.q), key_blocks(before.keys, tokens.k), key_blocks(before.values, tokens.v)
    is_visible = _band(before.count, blocks, block, reach)
    if pinned is not None:
        own = before.count[:, None] + torch.arange(length, device=q.device)[None]
        sinks = pinned.sink_keys.shape[2]
        indexed = own.clamp(max=sinks + window - 1)
        q_sink = query_blocks(_rotate(tokens.q_unrotated, rotary(tokens.q_unrotated, indexed)))
        # Both rotations in one softmax: queries carry the two side by side, each key is zero in the half not its own.
        q = torch.cat([q, q_sink], dim=-1)
        sink_k = pinned.sink_keys[:, None].expand(-1, blocks, -1, -1, -1)
        sink_v = pinned.sink_values[:, None].expand(-1, blocks, -1, -1, -1)
        k = torch.cat([F.pad(k, (0, dim)), F.pad(sink_k, (dim, 0))], dim=3)
        v = torch.cat([v, sink_v], dim=3)
        has_left = _sinks_that_left(before.count, blocks, block, window, sinks)
        is_visible = torch.cat([is_visible, has_left], dim=-1)
    is_visible = is_visible[:, :, None, None].expand(batch, -1, 1, heads // kv_heads, -1, -1).flatten(3, 4)
    out = F.scaled_dot_product_attention(
        q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), attn_mask=is_visible.flatten(0, 1), dropout_p=dropout,
        scale=scaling,
    )  # fmt: skip
    out = out.view(batch, blocks, kv_heads, heads // kv_heads, block, dim).permute(0, 2, 3, 1, 4, 5)
    return out.reshape(batch, heads, blocks * block, dim)[:, :, :length]


def _band(count: Tensor, blocks: int, block: int, reach: int) -> Tensor:
    """(B, N, Q, Q + R - 1): key b of a block is within reach of its query a, and some token's."""
    device = count.device
    query = torch.arange(block, device=device)[:, None]
    key = torch.arange(block + reach - 1, device=device)[None]
    within = (key >= query) & (key < query + reach)
    place = torch.arange(blocks, device=device)[:, None] * block + key
    exists = place[None] >= reach - 1 - count[:, None, None]
    return within[None, None] & exists[:, :, None]


def _sinks_that_left(count: Tensor, blocks: int, block: int, window: int, sinks: int) -> Tensor:
    """(B, N, Q, S): sink j is older than the window of the query at t, j <= t - W (else it is seen inside it)."""
    device = count.device
    places = torch.arange(blocks * block, device=device).view(1, blocks, block, 1)
    own = count.view(-1, 1, 1, 1) + places
    return torch.arange(sinks, device=device) <= own - window


def _rotate(tensor: Tensor, position_embeddings: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary positions on one tensor (B, heads, n, d)."""
    cos, sin = position_embeddings
    return apply_rotary_pos_emb(tensor, tensor, cos, sin)[0]
