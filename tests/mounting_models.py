"""Tiny backbones that the mounting tests share: random weights, two key/value heads for four query heads."""

from __future__ import annotations

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from ttt_core import TTTConfig

FAMILIES = ("llama", "qwen2", "qwen3", "mistral")
VOCABULARY = 97
_CLASSES = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
}


def tiny_model(family: str = "llama", seed: int = 0, **overrides: object) -> PreTrainedModel:
    """A causal LM of four layers, in eval mode. Weights large enough that every layer changes the tokens."""
    settings = {
        "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None, "initializer_range": 0.3,
    }  # fmt: skip
    config_class, model_class = _CLASSES[family]
    torch.manual_seed(seed)
    return model_class(config_class(**(settings | overrides))).eval()


def tiny_ttt(family: str = "llama", **overrides: object) -> TTTConfig:
    """TTT that fits the tiny models, with a step size at which the state matters after a few tokens."""
    settings = {
        "hidden_size": 32, "num_heads": 4, "head_dim": 8, "mini_batch_size": 4, "base_lr": 1.0,
        "projection_bias": family == "qwen2",
    }  # fmt: skip
    return TTTConfig(**(settings | overrides))
