"""What Moshi remembers of a conversation, in bytes: rings, TTT states and the tokens that are on their way."""

from __future__ import annotations

import torch
from moshi.models.lm import LMModel
from moshi.modules.lora import LoRALinear
from moshi.modules.transformer import StreamingMultiheadAttention
from torch import nn

from backbones.moshi.attention import MountedAttention, ring_capacity
from backbones.moshi.mount import attention_layers, require_lm, ttt_layers
from backbones.mounting.describe import BESIDE_TTT, Kind, LayerMemory, MemoryDescription
from ttt_core import TTTLayer

COUNTER_BYTES = 8
EXEC_MASK_BYTES = 1
TOKEN_BYTES = 8


def describe(lm: LMModel) -> MemoryDescription:
    """Memory of one row of the temporal transformer's stream, layer by layer, exactly as streaming allocates it.

    Ring caches (keys and values, whole from the first step on), sinks, TTT states, counters and execution masks.
    Computed from sizes and dtypes, so it works on the meta device too. Attention without a bound grows with every
    position, and cannot stream. Classifier-free guidance streams every row twice. Tokens: see `token_cache_bytes`.
    """
    require_lm(lm)
    attentions, ttt = attention_layers(lm), ttt_layers(lm)
    layers = []
    for index in range(len(lm.transformer.layers)):
        growing, fixed = 0, 0
        kind: Kind = "ttt"
        details: list[str] = []
        if index in ttt:
            fixed += ttt[index].initial_state(1).nbytes + EXEC_MASK_BYTES
            details.append(_inner(ttt[index]))
        if index in attentions:
            growing, attention_fixed, kind, told = _attention_memory(attentions[index])
            fixed += attention_fixed
            details.append(told)
            kind = BESIDE_TTT[kind] if index in ttt else kind
        layers.append(
            LayerMemory(
                layer=index, kind=kind, bytes_per_position=growing, bytes_fixed=fixed, detail="; ".join(details)
            )
        )
    return MemoryDescription(layers=tuple(layers))


def token_cache_bytes(lm: LMModel) -> int:
    """Bytes of one row of LMGen's own state: tokens of every codebook until the longest delay has passed, a counter."""
    require_lm(lm)
    return lm.num_codebooks * (max(lm.delays) + 2) * TOKEN_BYTES + COUNTER_BYTES + EXEC_MASK_BYTES


def _attention_memory(attention: StreamingMultiheadAttention) -> tuple[int, int, Kind, str]:
    """Bytes per position, bytes fixed, kind and detail."""
    dtype = _ring_dtype(attention)
    # Keys and values of the key/value heads, whose widths add up to embed_dim / kv_repeat.
    per_position = 2 * attention.embed_dim // attention.kv_repeat * dtype.itemsize
    if attention.context is None:
        return per_position, 0, "attention", "unbounded: cannot stream"
    capacity = ring_capacity(attention)
    sinks = attention.sinks if isinstance(attention, MountedAttention) else 0
    fixed = (capacity + sinks) * per_position + 2 * COUNTER_BYTES + EXEC_MASK_BYTES
    told = f"{attention.context} positions in a ring of {capacity}, {str(dtype).removeprefix('torch.')}"
    return 0, fixed, "window", told + (f" + {sinks} sinks" if sinks else "")


def _ring_dtype(attention: StreamingMultiheadAttention) -> torch.dtype:
    """As the package picks it: half precision for its 8-bit projections."""
    projection = attention.in_projs[0]
    if isinstance(projection, LoRALinear):
        return projection.lora_A.weight.dtype
    return projection.weight.dtype if isinstance(projection, nn.Linear) else torch.float16


def _inner(layer: TTTLayer) -> str:
    config = layer.config
    return f"{config.inner_model}, {config.num_heads} heads of {config.resolved_head_dim}"
