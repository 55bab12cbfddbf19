"""Mounting: TTT layers and windows into Moshi's temporal transformer, in place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from moshi.models.lm import LMModel
from moshi.modules.lora import LoRALinear
from moshi.modules.transformer import StreamingMultiheadAttention
from torch import Tensor, nn

from backbones.moshi.attention import MountedAttention
from backbones.moshi.streaming_ttt import StreamingTTT, forget_cached_children, is_streaming
from backbones.mounting.checks import checked_layers, checked_windows, whole_number
from ttt_core import TTTConfig, TTTLayer
from ttt_core.mounting import MountMode

BACKBONE = "moshi"


def mount(
    lm: LMModel, layers: Iterable[int], config: TTTConfig | None = None, mode: MountMode = "replace",
    window: int | Mapping[int, int] | None = None, sinks: int = 0,
) -> LMModel:  # fmt: skip
    """Mount TTT on the given layers of the temporal transformer, in place, and return the model.

    lm: loaded, in its final dtype, on its device and not streaming. The depth transformer is never mounted on: its
        streaming state lives for one frame.
    layers: where TTT goes; may be empty when a window is given.
    config: None takes hidden size, heads and head_dim from the attention, and TTTConfig's defaults for the rest.
    mode: "replace" puts TTT in self-attention's place; "gated" adds it through tanh(alpha), alpha 0 at first. In both
        TTT's projections start from that attention's.
    window: positions that every remaining attention sees and its ring holds (those beside a gated TTT too), or
        {layer: positions} for some of them; None leaves attention as it is. sinks: first positions pinned in front of
        every window, re-indexed.

    Raises ValueError on layers that do not exist, a model of another kind, mounted already or streaming, sizes that do
    not fit. Whatever it raises, the model is left as it was.
    """
    require_lm(lm)
    if is_mounted(lm):
        raise ValueError("the model is mounted already; mount a freshly loaded one with all the layers at once")
    require_not_streaming(lm, "mount")
    if mode not in ("replace", "gated"):
        raise ValueError(f"mode must be 'replace' or 'gated', got {mode!r}")
    if config is not None and not isinstance(config, TTTConfig):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"config must be a TTTConfig or None, got {config!r}: build one with TTTConfig(...)")
    attentions = attention_layers(lm)
    chosen = checked_layers(layers, BACKBONE, len(attentions))
    sinks = whole_number("sinks", sinks)
    windows = checked_windows(window, sinks, BACKBONE, len(attentions), chosen if mode == "replace" else [])
    if not chosen and not windows:
        raise ValueError("nothing to mount: layers is empty and no window is given")
    if sinks and lm.transformer.positional_embedding in ("sin", "sin_rope"):
        raise ValueError(
            f"sinks are re-indexed, and positional_embedding {lm.transformer.positional_embedding!r} adds absolute "
            "positions to the input, which cannot be: mount with sinks=0"
        )
    # Built before anything changes: sizes that do not fit raise here.
    built = {index: ttt_from_attention(attentions[index], config) for index in chosen}
    for index, positions in windows.items():
        attention = MountedAttention.equip(attentions[index])
        attention.window = attention.context = positions
        attention.sinks = sinks
    for index, ttt in built.items():
        if mode == "replace":
            lm.transformer.layers[index].self_attn = StreamingTTT(ttt)
        else:
            attention = MountedAttention.equip(attentions[index])
            attention.ttt, attention.alpha = StreamingTTT(ttt), nn.Parameter(ttt.wo.weight.new_zeros(lm.dim))
    forget_cached_children(lm)
    return lm


def is_mounted(lm: LMModel) -> bool:
    """True when TTT or windows have been mounted; room in the rings is no mounting."""
    return bool(ttt_modules(lm)) or bool(windows_of(lm))


def attention_layers(lm: LMModel) -> dict[int, StreamingMultiheadAttention]:
    """{layer index: its attention} of the temporal transformer, where TTT has not replaced it."""
    mixers = {index: layer.self_attn for index, layer in enumerate(lm.transformer.layers)}
    return {index: mixer for index, mixer in mixers.items() if isinstance(mixer, StreamingMultiheadAttention)}


def ttt_modules(lm: LMModel) -> dict[int, StreamingTTT]:
    """{layer index: the streaming module that holds its TTT layer}."""
    mixers = {index: layer.self_attn for index, layer in enumerate(lm.transformer.layers)}
    replaced = {index: mixer for index, mixer in mixers.items() if isinstance(mixer, StreamingTTT)}
    beside = {index: mixer.ttt for index, mixer in mixers.items() if isinstance(mixer, MountedAttention)}
    return dict(sorted((replaced | {index: ttt for index, ttt in beside.items() if ttt is not None}).items()))


def ttt_layers(lm: LMModel) -> dict[int, TTTLayer]:
    """{layer index: its TTTLayer}, empty for a model without TTT."""
    return {index: module.ttt for index, module in ttt_modules(lm).items()}


def gates(lm: LMModel) -> dict[int, nn.Parameter]:
    """{layer index: alpha (C,)} of a model mounted in gated mode; TTT enters through tanh(alpha)."""
    return {
        index: attention.alpha
        for index, attention in attention_layers(lm).items()
        if isinstance(attention, MountedAttention) and attention.alpha is not None
    }


def windows_of(lm: LMModel) -> dict[int, int]:
    """{layer index: positions} of the windows that mounting has set."""
    return {
        index: attention.window
        for index, attention in attention_layers(lm).items()
        if isinstance(attention, MountedAttention) and attention.window is not None
    }


def sinks_of(lm: LMModel) -> int:
    """Positions pinned in front of every mounted window."""
    found = {each.sinks for each in attention_layers(lm).values() if isinstance(each, MountedAttention) and each.window}
    assert len(found) <= 1
    return found.pop() if found else 0


def set_inner_step_size(lm: LMModel, base_lr: float | Tensor | None) -> None:
    """Inner step size of every TTT layer for the calls to come (inner warm-up); None goes back to the config's."""
    for module in ttt_modules(lm).values():
        module.base_lr = base_lr


def ttt_from_attention(attention: StreamingMultiheadAttention, config: TTTConfig | None) -> TTTLayer:
    """A TTT layer whose projections are the attention's, on its device, in its dtype (inner parameters FP32) and mode.

    config: None derives one. Key and value heads that several query heads share (kv_repeat) are repeated for each.
    Raises ValueError where the sizes do not fit, and for 8-bit weights.
    """
    packed, output = (_weight(projections[0]) for projections in (attention.in_projs, attention.out_projs))
    dim, heads = attention.embed_dim, attention.num_heads
    head_dim, kv_dim = dim // heads, dim // attention.kv_repeat
    if config is None:
        config = TTTConfig(hidden_size=dim, num_heads=heads, head_dim=head_dim)
    width = config.num_heads * config.resolved_head_dim
    if (config.hidden_size, width) != (dim, dim):
        raise ValueError(
            f"TTT starts from the attention's projections, {dim} -> {dim}; the config gives {config.hidden_size} -> "
            f"{width}. Set hidden_size, num_heads and head_dim to match, or leave the config out"
        )
    with torch.device(packed.device):
        ttt = TTTLayer(config)
    ttt.to(packed.dtype).train(attention.training)
    q, k, v = packed.split([dim, kv_dim, kv_dim])
    k, v = (
        part.unflatten(0, (-1, head_dim)).repeat_interleave(attention.kv_repeat, 0).flatten(0, 1) for part in (k, v)
    )
    with torch.no_grad():
        for target, source in ((ttt.wq, q), (ttt.wk, k), (ttt.wv, v), (ttt.wo, output)):
            if target is not None:
                target.weight.copy_(source)
    return ttt


def _weight(projection: nn.Module) -> Tensor:
    """Weight (out, in) of a projection, with the low-rank difference of a LoRA one added."""
    if isinstance(projection, LoRALinear):
        return projection.merge_weight()
    if isinstance(projection, nn.Linear):
        return projection.weight
    raise ValueError(
        f"TTT cannot start from a {type(projection).__name__}: load the checkpoint that is not quantized, then mount"
    )


def require_lm(lm: Any) -> None:
    if not isinstance(lm, LMModel):
        raise ValueError(f"expected a moshi.models.lm.LMModel, got a {type(lm).__name__} (of an LMGen: its .lm_model)")


def require_not_streaming(lm: LMModel, what: str) -> None:
    if is_streaming(lm):
        raise ValueError(
            f"cannot {what} while the model is streaming: what is running would keep its old states; leave the "
            "`with ... .streaming(...)` block first"
        )
