"""What stands in a decoder layer's `self_attn` place once it is mounted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from backbones.mounting.cache import HoldsTTTState, MountedCache, TTTCacheLayer, WindowCacheLayer
from backbones.mounting.window import Rotary, windowed_attention
from ttt_core import TTTConfig, TTTLayer

if TYPE_CHECKING:
    from transformers.models.llama.modeling_llama import LlamaAttention as _Attention
else:
    _Attention = object


@dataclass(frozen=True)
class MountedCall:
    """What a mounted layer needs to know of the call beyond what transformers hands to every layer.

    real_tokens: (B, T) bool, True = real token of this call; None when all are.
    rotary: the model's rotary embedding, for sinks that are re-indexed.
    base_lr: inner step size of this call, a number or a tensor of one; None for the config's.
    """

    real_tokens: Tensor | None
    rotary: Rotary
    base_lr: float | Tensor | None


class TTTMixer(nn.Module):
    """TTT in the place of self-attention: no keys, no values, no rotary positions of the model."""

    def __init__(self, ttt: TTTLayer, layer_index: int) -> None:
        super().__init__()
        self.ttt = ttt
        self.layer_index = layer_index
        self.training = ttt.training

    def forward(
        self, hidden_states: Tensor, mounted_call: MountedCall, past_key_values: MountedCache | None = None,
        **unused_by_ttt: object,
    ) -> tuple[Tensor, None]:  # fmt: skip
        """(B, T, C) -> (B, T, C) and no attention weights. Decoder layers call by keyword, with more than is needed."""
        out = _run_ttt(self.ttt, hidden_states, mounted_call, past_key_values, self.layer_index)
        if past_key_values is not None:
            layer = past_key_values.layers[self.layer_index]
            assert isinstance(layer, TTTCacheLayer)
            layer.advance(hidden_states.shape[1])
        return out, None


class MountedAttention(_Attention):
    """A family's attention with a window, with TTT beside it, or with both. Its parameters keep their names.

    window, sinks: positions seen, and first positions pinned; window None is the family's own attention, untouched.
    ttt: TTT of the same input, added through tanh(alpha); alpha (C,) starts at 0, where the sum is the attention's
    output bit for bit.
    """

    window: int | None
    sinks: int
    ttt: TTTLayer | None
    alpha: nn.Parameter | None

    def equip(self, window: int | None, sinks: int, ttt: TTTLayer | None, alpha: nn.Parameter | None) -> None:
        """Give an attention that has just become this class what the class adds."""
        self.window, self.sinks, self.ttt, self.alpha = window, sinks, ttt, alpha

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor], attention_mask: Tensor | None,
        mounted_call: MountedCall, past_key_values: MountedCache | None = None, **attention_options: Any,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        if self.window is None:
            # The family's own code, with what transformers passes to it, so that nothing of it can differ.
            attended, weights = super().forward(
                hidden_states=hidden_states, position_embeddings=position_embeddings, attention_mask=attention_mask,
                past_key_values=past_key_values, **attention_options,
            )  # fmt: skip
        else:
            attended = self._attend_window(hidden_states, position_embeddings, mounted_call, past_key_values)
            weights = None
        if self.ttt is None or self.alpha is None:
            return attended, weights
        added = _run_ttt(self.ttt, hidden_states, mounted_call, past_key_values, self.layer_idx)
        return attended + torch.tanh(self.alpha).to(added.dtype) * added, weights

    def project(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q (B, H, T, d), k and v (B, K, T, d), before rotary positions."""
        parts = (self.q_proj(hidden_states), self.k_proj(hidden_states), self.v_proj(hidden_states))
        q, k, v = (part.unflatten(2, (-1, self.head_dim)).transpose(1, 2) for part in parts)
        return q, k, v

    def _attend_window(
        self, hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor], call: MountedCall,
        cache: MountedCache | None,
    ) -> Tensor:  # fmt: skip
        assert self.window is not None
        layer = None if cache is None else cache.layers[self.layer_idx]
        assert layer is None or isinstance(layer, WindowCacheLayer)
        out, memory = windowed_attention(
            *self.project(hidden_states), position_embeddings, call.rotary, None if layer is None else layer.memory,
            self.window, self.sinks, call.real_tokens, self.scaling,
            (self.attention_dropout or 0.0) if self.training else 0.0,
        )  # fmt: skip
        if layer is not None:
            layer.remember(memory, hidden_states.shape[1])
        return self.o_proj(out.transpose(1, 2).flatten(2))


def _run_ttt(
    ttt: TTTLayer, hidden_states: Tensor, call: MountedCall, cache: MountedCache | None, layer_index: int
) -> Tensor:
    layer = None if cache is None else cache.layers[layer_index]
    assert layer is None or isinstance(layer, HoldsTTTState)
    out, _, state = ttt(hidden_states, None if layer is None else layer.state, call.real_tokens, call.base_lr)
    if layer is not None:
        layer.store(state)
    return out


def closed_gate(attention: Any) -> nn.Parameter:
    """Alpha (C,) of zeros, on the attention's device and in its dtype."""
    weight = attention.o_proj.weight
    return nn.Parameter(weight.new_zeros(weight.shape[0]))


def ttt_from_attention(attention: Any, config: TTTConfig) -> TTTLayer:
    """A TTT layer whose projections are the attention's, on its device, in its dtype (inner parameters FP32) and mode.

    Key and value heads that several query heads share are repeated for each of them. Norms on queries and keys
    (Qwen3) are not part of TTT and are left out. Raises ValueError where the sizes or biases do not fit.
    """
    weight = attention.q_proj.weight
    with torch.device(weight.device):
        ttt = TTTLayer(config)
    ttt.to(weight.dtype).train(attention.training)
    if ttt.wq.weight.shape != weight.shape or attention.o_proj.weight.shape != ttt.wo.weight.shape:
        width, hidden = weight.shape
        raise ValueError(
            f"TTT starts from the attention's projections, {hidden} -> {width}; the config gives "
            f"{config.hidden_size} -> {config.num_heads * config.resolved_head_dim}. Set hidden_size, num_heads and "
            "head_dim to match, or leave the config out"
        )
    if attention.o_proj.bias is not None:
        raise ValueError("the attention's output projection has a bias, and TTT's has none: TTT cannot start from it")
    if attention.q_proj.bias is not None and not config.projection_bias:
        raise ValueError("the attention's projections have biases: set TTTConfig(projection_bias=True)")
    pairs = [(ttt.wq, attention.q_proj), (ttt.wv, attention.v_proj)]
    if ttt.wk is not None:
        pairs.append((ttt.wk, attention.k_proj))
    with torch.no_grad():
        ttt.wo.weight.copy_(attention.o_proj.weight)
        for target, source in pairs:
            repeats = target.weight.shape[0] // source.weight.shape[0]
            target.weight.copy_(_repeat_heads(source.weight, attention.head_dim, repeats))
            if source.bias is not None:
                target.bias.copy_(_repeat_heads(source.bias, attention.head_dim, repeats))
    return ttt


def _repeat_heads(weight: Tensor, head_dim: int, repeats: int) -> Tensor:
    """Rows (heads * head_dim, ...) with every head's rows `repeats` times in a row."""
    if repeats == 1:
        return weight
    return weight.unflatten(0, (-1, head_dim)).repeat_interleave(repeats, dim=0).flatten(0, 1)
