"""Moshi's attention with what this adapter may add to it: a roomier ring, pinned sinks, TTT beside it.

Legend: B rows, T steps of the call, H query heads, K key/value heads, d head_dim, W window (the context), S sinks.
The query at position t sees the keys u with t - W < u <= t, and the sinks j < S with j <= t - W. A sink is re-indexed
to stand right before the window (StreamingLLM, Xiao et al. 2023): its key stays rotated at j, and the query is rotated
a second time for it, at min(t, S + W - 1).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from moshi.modules.transformer import (
    KVCacheResult,
    RingKVCache,
    StreamingMultiheadAttention,
    _MHAState,
    expand_repeated_kv,
)
from torch import Tensor, nn

from backbones.moshi.streaming_ttt import StreamingTTT


@dataclass
class SinkState(_MHAState):
    """The package's attention state, and the keys (rotated at 0..S-1) and values of the sinks, each (B, K, S, d)."""

    sink_keys: Tensor | None = None
    sink_values: Tensor | None = None

    def reset(self, reset_mask: Tensor) -> None:
        super().reset(reset_mask)
        for pinned in (self.sink_keys, self.sink_values):
            assert pinned is not None
            pinned.copy_(torch.where(reset_mask[:, None, None, None], torch.zeros_like(pinned), pinned))


class MountedAttention(StreamingMultiheadAttention):
    """The package's attention, its parameters under their names, with additions that may each be absent.

    window: positions seen, where mounting has set them (then also the package's `context`); None where it has not.
    sinks: first positions pinned in front of the window.
    tokens_per_call: steps that one streaming call may bring without losing keys that its first queries still see.
    ttt: TTT of the same input, added through tanh(alpha); alpha (C,) starts at 0, where the sum is the attention's
    output bit for bit.
    """

    window: int | None
    sinks: int
    tokens_per_call: int
    ttt: StreamingTTT | None
    alpha: nn.Parameter | None

    @staticmethod
    def equip(attention: StreamingMultiheadAttention) -> MountedAttention:
        """Make an attention one of these, in place and without additions yet, so that it computes what it did."""
        if isinstance(attention, MountedAttention):
            return attention
        # Class assignment keeps parameter names, hooks and whoever holds the module.
        attention.__class__ = MountedAttention
        assert isinstance(attention, MountedAttention)
        attention.window, attention.sinks, attention.tokens_per_call = None, 0, 1
        attention.ttt, attention.alpha = None, None
        return attention

    def _init_streaming_state(self, batch_size: int) -> _MHAState:
        if self.context is None:
            raise ValueError(
                "attention without a bound cannot stream, for its ring would have no size: give it one with "
                "set_context(lm, positions), as large as the longest stream for full attention"
            )
        state = super()._init_streaming_state(batch_size)
        plain = state.kv_cache
        assert plain is not None
        _, rows, heads, _, head_dim = plain.cache.shape
        device, dtype = plain.cache.device, plain.cache.dtype
        if self.tokens_per_call > 1:
            state.kv_cache = RingKVCache(rows, heads, head_dim, ring_capacity(self), device=device, dtype=dtype)
        if not self.sinks:
            return state
        keys, values = (torch.zeros(rows, heads, self.sinks, head_dim, device=device, dtype=dtype) for _ in range(2))
        return SinkState(
            batch_size, device, state.kv_cache, offset=state.offset, offset_cpu=0, sink_keys=keys, sink_values=values
        )

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C), batched or streaming."""
        attended = self._attend_with_sinks(query) if self.sinks else super().forward(query, key, value)
        if self.ttt is None or self.alpha is None:
            return attended
        added = self.ttt(query, query, query)
        return attended + torch.tanh(self.alpha).to(added.dtype) * added

    def _attend_with_sinks(self, x: Tensor) -> Tensor:
        state = self._streaming_state
        assert state is None or isinstance(state, SinkState)
        assert self.context is not None
        batch, tokens = x.shape[:2]
        offset = torch.zeros(batch, device=x.device, dtype=torch.long) if state is None else state.offset
        positions = offset[:, None] + torch.arange(tokens, device=x.device)
        q, k, v = self._project(x)
        q_sink = self._rotate_at(q, positions.clamp(max=self.sinks + self.context - 1))
        if self.rope is not None:
            q, k = self.rope(q, k, offset, time_before_heads=False)
        if state is None:
            sink_k, sink_v = k[:, :, : self.sinks], v[:, :, : self.sinks]
            kept = KVCacheResult.from_kv(k, v)
        else:
            sink_k, sink_v = _pin(state, k, v)
            assert state.kv_cache is not None
            kept = state.kv_cache.complete(k, v, state.exec_mask)

        age = positions[:, :, None] - kept.positions[:, None]
        in_window = (kept.positions[:, None] >= 0) & (age >= 0) & (age < self.context)
        slots = torch.arange(sink_k.shape[2], device=x.device)
        has_left = slots <= positions[:, :, None] - self.context
        # Both rotations in one softmax: a query carries the two side by side, a key is zero in the half not its own.
        dim = q.shape[-1]
        keys = torch.cat([F.pad(kept.keys, (0, dim)), F.pad(sink_k, (dim, 0))], dim=2)
        values = torch.cat([kept.values, sink_v], dim=2)
        out = F.scaled_dot_product_attention(
            torch.cat([q, q_sink], dim=-1), expand_repeated_kv(keys, self.kv_repeat),
            expand_repeated_kv(values, self.kv_repeat), torch.cat([in_window, has_left], dim=-1)[:, None],
            scale=dim**-0.5,
        )  # fmt: skip
        if state is not None:
            state.offset.copy_(torch.where(state.exec_mask, state.offset + tokens, state.offset))
            state.offset_cpu += tokens
        return self.out_projs[0](out.transpose(1, 2).flatten(2))

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q (B, H, T, d), k and v (B, K, T, d), before rotary positions."""
        head_dim = self.embed_dim // self.num_heads
        kv_dim = self.embed_dim // self.kv_repeat
        parts = self.in_projs[0](x).split([self.embed_dim, kv_dim, kv_dim], dim=2)
        q, k, v = (part.unflatten(2, (-1, head_dim)).transpose(1, 2) for part in parts)
        return q, k, v

    def _rotate_at(self, q: Tensor, positions: Tensor) -> Tensor:
        """q (B, H, T, d) rotated at any positions (B, T), by the package's own rotation."""
        if self.rope is None:
            return q
        # The package rotates consecutive positions: each step becomes a row of its own.
        single = q.transpose(1, 2).flatten(0, 1).unsqueeze(2)
        rotated = self.rope(single, single, positions.flatten(), time_before_heads=False)[0]
        return rotated.squeeze(2).unflatten(0, positions.shape).transpose(1, 2)


def ring_capacity(attention: StreamingMultiheadAttention) -> int:
    """Positions that the ring of a streaming attention holds."""
    assert attention.context is not None
    room = attention.tokens_per_call - 1 if isinstance(attention, MountedAttention) else 0
    return attention.context + room


def _pin(state: SinkState, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The sinks' keys and values, once those among the call's k and v (B, K, T, d) are in the state."""
    assert state.sink_keys is not None and state.sink_values is not None
    slots = torch.arange(state.sink_keys.shape[2], device=k.device)
    source = slots[None] - state.offset[:, None]
    is_new = (source >= 0) & (source < k.shape[2]) & state.exec_mask[:, None]
    index = source.clamp(0, k.shape[2] - 1)[:, None, :, None].expand_as(state.sink_keys)
    for pinned, new in ((state.sink_keys, k), (state.sink_values, v)):
        pinned.copy_(torch.where(is_new[:, None, :, None], new.gather(2, index), pinned))
    return state.sink_keys, state.sink_values
