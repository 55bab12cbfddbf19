"""Mounting: TTT layers and windows into a transformers decoder, in place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from backbones.mounting.cache import MountedCache
from backbones.mounting.checks import checked_layers, checked_windows, whole_number
from backbones.mounting.config import mounted_config_fields
from backbones.mounting.decoder import MountedCausalLM, MountedDecoder, build_cache, equip
from backbones.mounting.families import FAMILIES, Family
from backbones.mounting.mixers import MountedAttention, TTTMixer
from ttt_core import TTTConfig, TTTLayer
from ttt_core.mounting import MountMode

# Rotary kinds whose frequencies depend on the longest position of a call: re-indexed sinks would change them.
LENGTH_DEPENDENT_ROTARY = ("dynamic", "longrope")


class TransformersHost:
    """The transformers side of `ttt_core.mount` (entry-point group `ttt_core.hosts`)."""

    def matches(self, model: nn.Module) -> bool:
        return isinstance(model, (MountedDecoder, MountedCausalLM)) or _family_of(model) is not None

    def mount(
        self, model: nn.Module, layers: Iterable[int], config: TTTConfig | None = None, mode: MountMode = "replace",
        window: int | Mapping[int, int] | None = None, sinks: int = 0,
    ) -> nn.Module:  # fmt: skip
        return mount(model, layers, config, mode, window, sinks)


def mount(
    model: nn.Module, layers: Iterable[int], config: TTTConfig | None = None, mode: MountMode = "replace",
    window: int | Mapping[int, int] | None = None, sinks: int = 0,
) -> nn.Module:  # fmt: skip
    """Mount TTT on the given layers of a Llama, Qwen2, Qwen3 or Mistral, in place, and return the model.

    model: `...ForCausalLM` or the bare `...Model`, unmounted, in its final dtype and on its device.
    layers: where TTT goes; may be empty when a window is given.
    config: None takes hidden size, heads and head_dim from the attention, and TTTConfig's defaults for the rest.
    mode: "replace" puts TTT in self-attention's place; "gated" adds it through tanh(alpha), alpha 0 at first. In both
        TTT's projections start from that attention's.
    window: positions that every remaining attention sees (those beside a gated TTT too), or {layer: positions} for
        some of them; None leaves attention as it is. sinks: first positions pinned in front of every window.

    Raises ValueError on layers that do not exist, a model of another kind or already mounted, sizes that do not fit.
    Whatever it raises, the model is left as it was.
    """
    if isinstance(model, (MountedDecoder, MountedCausalLM)):
        raise ValueError("the model is mounted already; mount a freshly loaded one with all the layers at once")
    family = _family_of(model)
    if family is None or not isinstance(model, PreTrainedModel):
        names = ", ".join(each.plain_causal_lm.__name__ for each in FAMILIES)
        raise ValueError(f"cannot mount on a {type(model).__name__}: give one of {names}, or the Model inside it")
    if mode not in ("replace", "gated"):
        raise ValueError(f"mode must be 'replace' or 'gated', got {mode!r}")
    if config is not None and not isinstance(config, TTTConfig):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"config must be a TTTConfig or None, got {config!r}: build one with TTTConfig(...)")
    plain = model.config
    chosen = checked_layers(layers, family.name, plain.num_hidden_layers)
    sinks = whole_number("sinks", sinks)
    windows = checked_windows(window, sinks, family.name, plain.num_hidden_layers, chosen if mode == "replace" else [])
    if not chosen and not windows:
        raise ValueError("nothing to mount: give layers for TTT, a window, or both")
    if sinks and plain.rope_parameters["rope_type"] in LENGTH_DEPENDENT_ROTARY:
        raise ValueError(
            f"sinks are re-indexed, and {plain.rope_parameters['rope_type']!r} rotary positions depend on the longest "
            "position of a call: mount with sinks=0"
        )
    decoder: Any = model.model if isinstance(model, family.plain_causal_lm) else model
    if config is None and chosen:
        config = _derived_config(decoder.layers[chosen[0]].self_attn)
    if config is not None and config.hidden_size != plain.hidden_size:
        raise ValueError(f"the config's hidden_size is {config.hidden_size}, the backbone's {plain.hidden_size}")
    fields = mounted_config_fields(plain, chosen, mode, config if chosen else None, windows, sinks)
    _become_mounted(model, decoder, family, fields)
    return model


def _become_mounted(model: PreTrainedModel, decoder: Any, family: Family, fields: dict[str, object]) -> None:
    """Change the classes and the config of a model in place: whoever holds the model holds the mounted one.

    Class assignment is what keeps names, hooks, tied weights and `isinstance(model, LlamaForCausalLM)`, and what makes
    the mounted model the same as one that a saved folder loads. The family's classes add methods only.
    """
    plain = model.config
    # A new config object: other models may share the plain one. to_dict drops the attention implementation.
    mounted = family.config.from_dict({**plain.to_dict(), **fields})
    mounted._attn_implementation = plain._attn_implementation
    holders: list[Any] = [module for module in model.modules() if module.__dict__.get("config") is plain]
    plain_class = decoder.__class__
    try:
        decoder.__class__, decoder.config = family.decoder, mounted
        equip(decoder)
    except BaseException:  # memory that runs out and Ctrl-C too: a half mounted model computes something else
        decoder.__class__, decoder.config = plain_class, plain
        raise
    for module in holders:
        module.config = mounted
    if isinstance(model, family.plain_causal_lm):
        model.__class__ = family.causal_lm


def load_mounted(folder: str | Path, dtype: torch.dtype | str | None = None) -> PreTrainedModel:
    """A mounted model from what its `save_pretrained` wrote. AutoModelForCausalLM does the same once this package
    is imported; here a folder of an unmounted model is refused instead of loaded as it is."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
    if not isinstance(model, MountedCausalLM):
        raise ValueError(f"{folder} holds an unmounted {type(model).__name__}: load it with transformers, then mount")
    return model


def mounted_decoder(model: nn.Module) -> MountedDecoder:
    """The decoder of a mounted model, which may be that decoder itself."""
    decoder = model.model if isinstance(model, MountedCausalLM) else model
    if not isinstance(decoder, MountedDecoder):
        raise ValueError(f"the {type(model).__name__} is not mounted: call mount(model, ...) first")
    return decoder


def model_cache(model: nn.Module) -> MountedCache:
    """An empty cache for a mounted model: to stream through, to carry from turn to turn or segment to segment.

    In training the states in it carry gradients from segment to segment until `cache.detach()`.
    """
    return build_cache(mounted_decoder(model).config)


def ttt_layers(model: nn.Module) -> dict[int, TTTLayer]:
    """{layer index: its TTTLayer} of a mounted model."""
    mixers = {index: layer.self_attn for index, layer in enumerate(mounted_decoder(model).layers)}
    return {
        index: mixer.ttt
        for index, mixer in mixers.items()
        if isinstance(mixer, (TTTMixer, MountedAttention)) and mixer.ttt is not None
    }


def gates(model: nn.Module) -> dict[int, nn.Parameter]:
    """{layer index: alpha (C,)} of a model mounted in gated mode; TTT enters through tanh(alpha)."""
    mixers = {index: layer.self_attn for index, layer in enumerate(mounted_decoder(model).layers)}
    return {
        index: mixer.alpha
        for index, mixer in mixers.items()
        if isinstance(mixer, MountedAttention) and mixer.alpha is not None
    }


def _family_of(model: nn.Module) -> Family | None:
    # Exact classes: a subclass may have a forward of its own, which becoming a mounted class would drop.
    for family in FAMILIES:
        if type(model) in (family.plain_decoder, family.plain_causal_lm):
            return family
    return None


def _derived_config(attention: Any) -> TTTConfig:
    weight = attention.q_proj.weight
    return TTTConfig(
        hidden_size=weight.shape[1],
        num_heads=weight.shape[0] // attention.head_dim,
        head_dim=attention.head_dim,
        projection_bias=attention.q_proj.bias is not None,
    )
