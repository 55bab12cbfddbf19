"""The forward pass of a mounted decoder, and how one is built from its config."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from backbones.mounting.cache import (
    FullAttentionCacheLayer,
    MountedCache,
    SlidingAttentionCacheLayer,
    TTTCacheLayer,
    TTTFullAttentionCacheLayer,
    TTTSlidingAttentionCacheLayer,
    TTTWindowCacheLayer,
    WindowCacheLayer,
)
from backbones.mounting.config import MOUNTED_LAYER_TYPES, read_ttt_config, window_of
from backbones.mounting.mixers import MountedAttention, MountedCall, TTTMixer, closed_gate, ttt_from_attention
from ttt_core.conv import CausalConv
from ttt_core.layer import InnerParameters

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM as _CausalLM
    from transformers import LlamaModel as _Decoder
else:
    _CausalLM = _Decoder = object

MASK_OF_LAYER_TYPE: dict[str, Callable[..., Any]] = {
    "full_attention": create_causal_mask,
    "sliding_attention": create_sliding_window_causal_mask,
}


class MountedDecoder(_Decoder):
    """Mixed in before a family's decoder: its layers with TTT and windows in them, and a forward that serves them.

    The loop is written out here because the families' own hand one mask to every layer (Llama, Mistral) or look it
    up by layer type (Qwen), build a T x T mask even if no layer reads it, and pass the padding mask to none.
    """

    attention_class: ClassVar[type[MountedAttention]]
    # A loader that takes one dtype for all parameters leaves these alone; `.to()` and `.half()` are TTTLayer's matter.
    _keep_in_fp32_modules_strict: set[str] | list[str] | None = ["ttt.inner."]  # noqa: RUF012 (as declared above it)

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        equip(self)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Also called for every tensor that a checkpoint lacked: without this they would stay uninitialised memory."""
        if isinstance(module, (InnerParameters, CausalConv)):
            _reset_keeping_loaded(module, module.reset_parameters)
            return
        super()._init_weights(module)
        if isinstance(module, MountedAttention) and module.alpha is not None:
            _reset_keeping_loaded(module, module.alpha.zero_)

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None, past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None, use_cache: bool | None = None,
        ttt_base_lr: float | Tensor | None = None, **options: Any,
    ) -> BaseModelOutputWithPast:  # fmt: skip
        """As the family's forward, with `attention_mask` (B, past + T), 1 = real token, heeded by every layer.

        ttt_base_lr: inner step size of this call, for inner warm-up; None for the config's.
        `options` is what transformers hands through to its layers (its own contract, so it is open here too).
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        self._refuse_attention_weights(options)
        hidden_states: Tensor = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        cache = self._cache_for_call(past_key_values, bool(use_cache))
        past, tokens = 0 if cache is None else cache.get_seq_length(), hidden_states.shape[1]
        if position_ids is None:
            position_ids = (torch.arange(tokens, device=hidden_states.device) + past).unsqueeze(0)
        real_tokens = self._real_tokens(attention_mask, past, tokens)
        layer_types = self.config.layer_types
        masks = {
            layer_type: MASK_OF_LAYER_TYPE[layer_type](
                config=self.config, inputs_embeds=hidden_states, attention_mask=attention_mask,
                past_key_values=cache, position_ids=position_ids,
            )
            for layer_type in sorted(set(layer_types) & set(MASK_OF_LAYER_TYPE))
        }  # fmt: skip

        position_embeddings = self.rotary_emb(hidden_states, position_ids=position_ids)
        call = MountedCall(real_tokens, self.rotary_emb, ttt_base_lr)
        for layer, layer_type in zip(self.layers, layer_types, strict=True):
            # Layers that are not ours get nothing that their own code would have to ignore.
            ours = {"mounted_call": call} if isinstance(layer.self_attn, (MountedAttention, TTTMixer)) else {}
            hidden_states = layer(
                hidden_states, attention_mask=masks.get(layer_type), position_embeddings=position_embeddings,
                position_ids=position_ids, past_key_values=cache, use_cache=use_cache, **ours, **options,
            )  # fmt: skip
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden_states), past_key_values=cache)

    def _refuse_attention_weights(self, options: dict[str, Any]) -> None:
        wanted = options.get("output_attentions", self.config.output_attentions)
        without = [index for index, kind in enumerate(self.config.layer_types) if kind in MOUNTED_LAYER_TYPES]
        if wanted and without:
            raise ValueError(
                f"output_attentions: layers {without} are TTT or windowed and have no attention weights to give, and a "
                "list of the other layers' would be out of step with the layers; call without output_attentions"
            )

    def _cache_for_call(self, given: Cache | None, use_cache: bool) -> MountedCache | None:
        if given is None:
            return build_cache(self.config) if use_cache else None
        if self.gradient_checkpointing and self.training:
            raise ValueError(
                "with gradient_checkpointing_enable(), transformers drops the cache of every layer without a word, "
                "and the state carried from the segment before would be lost. Disable it and set "
                "TTTConfig.checkpoint_group, which checkpoints inside the TTT layers, or train without carried state"
            )
        if not isinstance(given, MountedCache):
            _adopt(given, self.config)
        assert isinstance(given, MountedCache)
        if len(given.layers) != len(self.layers):
            raise ValueError(f"the cache has {len(given.layers)} layers and the model {len(self.layers)}")
        return given

    def _real_tokens(self, attention_mask: object, past: int, tokens: int) -> Tensor | None:
        """(B, T) bool of this call's tokens, from the 2-D mask over all columns so far."""
        if attention_mask is None:
            return None
        if not isinstance(attention_mask, Tensor) or attention_mask.dim() != 2:
            raise ValueError(
                "a mounted model takes the 2-D padding mask (batch, past + tokens): TTT cannot tell padding from a "
                "ready-made attention mask"
            )
        columns = attention_mask.shape[1]
        reads_all_columns = any(layer_type in MASK_OF_LAYER_TYPE for layer_type in self.config.layer_types)
        if columns != past + tokens and (reads_all_columns or columns != tokens):
            raise ValueError(
                f"attention_mask has {columns} columns; expected {past + tokens}: {past} already in the cache and "
                f"{tokens} of this call"
            )
        real_tokens = attention_mask[:, -tokens:].bool()
        # generate() always brings a mask. Where it hides nothing, a prompt is spared the moving of tokens to the front.
        if tokens > 1 and not torch.compiler.is_compiling() and bool(real_tokens.all()):
            return None
        return real_tokens


class MountedCausalLM(_CausalLM):
    """Mixed in before a family's language model, so that a saved folder loads with its decoder mounted."""

    decoder_class: ClassVar[type[MountedDecoder]]
    _keep_in_fp32_modules_strict: set[str] | list[str] | None = ["ttt.inner."]  # noqa: RUF012 (as declared above it)

    def __init__(self, config: PreTrainedConfig) -> None:
        # Not the family's __init__: it would build an unmounted decoder first.
        PreTrainedModel.__init__(self, config)
        self.model = self.decoder_class(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()


def equip(decoder: MountedDecoder) -> None:
    """Put TTT and windows into a decoder whose config says where; nothing is changed if one of them cannot be.

    Everything that is checked or takes memory is built first; once a layer is changed, nothing is left that can fail.
    """
    config = decoder.config
    layers: Any = decoder.layers
    attentions = {index: layer.self_attn for index, layer in enumerate(layers)}
    ttt = {index: ttt_from_attention(attentions[index], read_ttt_config(config)) for index in config.ttt_layers}
    replacing = {index: TTTMixer(ttt[index], index) for index in ttt if layer_type_is_ttt(config, index)}
    alphas = {index: closed_gate(attentions[index]) for index in ttt if index not in replacing}
    for index, layer in enumerate(layers):
        if index in replacing:
            layer.self_attn = replacing[index]
        elif index in alphas or window_of(config, index) is not None:
            attention = attentions[index]
            # Its class changes, the object stays: names, devices, hooks and tied weights are as they were, so that a
            # plain checkpoint still fits, and a closed gate runs the very same code.
            attention.__class__ = decoder.attention_class
            attention.equip(window_of(config, index), config.attention_sinks, ttt.get(index), alphas.get(index))


def layer_type_is_ttt(config: PreTrainedConfig, index: int) -> bool:
    return config.layer_types[index] == "ttt"


def build_cache(config: PreTrainedConfig) -> MountedCache:
    """An empty cache of the kinds of layers that a mounted config names."""
    return MountedCache([_cache_layer(config, index) for index in range(config.num_hidden_layers)])


def _cache_layer(config: PreTrainedConfig, index: int) -> CacheLayerMixin:
    layer_type, has_ttt = config.layer_types[index], index in config.ttt_layers
    if layer_type == "ttt":
        return TTTCacheLayer()
    if layer_type == "window":
        return TTTWindowCacheLayer() if has_ttt else WindowCacheLayer()
    if layer_type == "sliding_attention":
        sliding = TTTSlidingAttentionCacheLayer if has_ttt else SlidingAttentionCacheLayer
        return sliding(sliding_window=config.sliding_window)
    return TTTFullAttentionCacheLayer() if has_ttt else FullAttentionCacheLayer()


def _adopt(cache: Any, config: PreTrainedConfig) -> None:
    """Make the cache object that generate() or a caller built before the first token one of ours, in place.

    generate() keeps a reference to the object it built and returns it, so a new object would not do.
    """
    if type(cache) is not DynamicCache or cache.offloading:
        raise ValueError(
            f"a mounted model keeps its state in a MountedCache, and cannot in a {type(cache).__name__}"
            f"{' that is offloaded' if cache.offloading else ''}: leave cache_implementation unset, or pass "
            "model_cache(model)"
        )
    held: list[Any] = cache.layers
    if any(layer.get_seq_length() for layer in held):
        raise ValueError("the cache was filled by an unmounted model: start from model_cache(model)")
    cache.layers, cache.layer_class_to_replicate = build_cache(config).layers, None
    cache.__class__ = MountedCache


def _reset_keeping_loaded(module: nn.Module, reset: Callable[[], Any]) -> None:
    """Run `reset`, then put back every tensor that came from a checkpoint (transformers flags those)."""
    loaded = {
        name: parameter.detach().clone()
        for name, parameter in module.named_parameters(recurse=False)
        if getattr(parameter, "_is_hf_initialized", False)
    }
    reset()
    for name, value in loaded.items():
        module.get_parameter(name).copy_(value)
