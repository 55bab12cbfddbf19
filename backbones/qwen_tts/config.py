"""Qwen2.5's published dimensions: the `config.json` of Qwen/Qwen2.5-1.5B and Qwen/Qwen2.5-7B on huggingface.co."""

from __future__ import annotations

from typing import Literal, get_args

from transformers import Qwen2Config

QwenSize = Literal["1.5B", "7B"]
PUBLISHED_SIZES: tuple[QwenSize, ...] = get_args(QwenSize)

_SHARED = {
    "hidden_act": "silu",
    "max_position_embeddings": 131_072,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "use_sliding_window": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151_643,
    "eos_token_id": 151_643,
}
_ROPE_THETA = 1_000_000.0
_DIMENSIONS: dict[QwenSize, dict[str, int | bool]] = {
    "1.5B": {
        "vocab_size": 151_936, "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
        "num_attention_heads": 12, "num_key_value_heads": 2, "tie_word_embeddings": True,
    },
    "7B": {
        "vocab_size": 152_064, "hidden_size": 3584, "intermediate_size": 18_944, "num_hidden_layers": 28,
        "num_attention_heads": 28, "num_key_value_heads": 4, "tie_word_embeddings": False,
    },
}  # fmt: skip


def qwen_llm_config(size: QwenSize) -> Qwen2Config:
    """The published language model of a size, every layer with full attention over grouped key/value heads.

    Raises ValueError for a size that is not here.
    """
    if size not in _DIMENSIONS:
        raise ValueError(f"no Qwen2.5 of size {size!r} here; there are {', '.join(PUBLISHED_SIZES)}")
    # The published files give rope_theta on its own; transformers 5 keeps it with the other rotary settings.
    rotary = {"rope_type": "default", "rope_theta": _ROPE_THETA}
    return Qwen2Config(**_DIMENSIONS[size], **_SHARED, rope_parameters=rotary)
