"""Is every value of a Llama-Omni configuration of its type and in its range? Files come from anywhere."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

# Rotary variants whose frequencies depend on the length seen would make a cached and an uncached pass differ.
KEYS_OF_ROPE_TYPE = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor",),
}

WHOLE_NUMBERS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "speech_encoder_hidden_size",
    "speech_encoder_ds_rate",
    "ctc_upsample_factor",
    "unit_vocab_size",
    "speech_encoder_mel_bins",
    "speech_encoder_context",
    "speech_encoder_heads",
    "speech_encoder_layers",
    "speech_projector_hidden_size",
)
WHOLE_NUMBERS_OR_NONE = ("num_key_value_heads", "head_dim", "speech_generator_window")
NUMBERS = ("rms_norm_eps", "rope_theta", "attention_dropout", "initializer_range", "ctc_loss_weight")
SWITCHES = ("attention_bias", "mlp_bias", "tie_word_embeddings")
TEXTS = (
    "hidden_act",
    "speech_encoder",
    "speech_encoder_type",
    "speech_projector_type",
    "speech_generator_type",
    "ctc_decoder_config",
)


def check_values(values: Mapping[str, Any]) -> None:
    """Raises ValueError that names the first field whose type or range is wrong."""
    for name in WHOLE_NUMBERS:
        check_whole_number(name, values[name])
    for name in WHOLE_NUMBERS_OR_NONE:
        if values[name] is not None:
            check_whole_number(name, values[name], " or none")
    for name in NUMBERS:
        given = values[name]
        if type(given) not in (int, float) or not math.isfinite(given) or given < 0:
            raise ValueError(f"{name} must be a finite number of 0 or more, got {given!r}")
    for name in SWITCHES:
        if type(values[name]) is not bool:
            raise ValueError(f"{name} must be true or false, got {values[name]!r}")
    for name in TEXTS:
        if not isinstance(values[name], str):
            raise ValueError(f"{name} must be a text, got {values[name]!r}")
    _check_token_ids(values)
    _check_heads(values)
    check_rope(values["rope_scaling"])


def check_whole_number(name: str, given: Any, alternative: str = "") -> None:
    """Raises ValueError unless `given` is an int of at least 1."""
    if type(given) is not int or given < 1:
        raise ValueError(
            f"{name} must be a whole number of at least 1{alternative and ' ' + alternative}, got {given!r}"
        )


def check_rope(rope: Any) -> None:
    """Raises ValueError unless `rope` is None or a mapping with a supported `rope_type` and what that needs."""
    if rope is None:
        return
    if not isinstance(rope, Mapping) or "rope_type" not in rope:
        raise ValueError(
            f"rope_scaling must be none or name a rope_type, one of {list(KEYS_OF_ROPE_TYPE)}; got {rope!r}"
        )
    kind = rope["rope_type"]
    if kind not in KEYS_OF_ROPE_TYPE:
        raise ValueError(f"rope type {kind!r} is not supported; use one of {list(KEYS_OF_ROPE_TYPE)}")
    lacking = [key for key in KEYS_OF_ROPE_TYPE[kind] if type(rope.get(key)) not in (int, float)]
    if lacking:
        raise ValueError(f"rope_scaling of type {kind!r} needs numbers for {lacking}, got {dict(rope)}")


def _check_token_ids(values: Mapping[str, Any]) -> None:
    ends = values["eos_token_id"]
    for name, ids in (
        ("bos_token_id", [values["bos_token_id"]]),
        ("eos_token_id", ends if isinstance(ends, list) else [ends]),
        ("pad_token_id", [values["pad_token_id"]]),
    ):
        if any(type(token) is not int for token in ids if token is not None):
            raise ValueError(f"{name} must be a token id, got {values[name]!r}")
    pad, vocab_size = values["pad_token_id"], values["vocab_size"]
    if pad is not None and not 0 <= pad < vocab_size:
        raise ValueError(f"pad_token_id {pad} is beyond the vocabulary of {vocab_size} tokens")


def _check_heads(values: Mapping[str, Any]) -> None:
    width, heads = values["hidden_size"], values["num_attention_heads"]
    if values["head_dim"] is None and width % heads:
        raise ValueError(f"hidden_size {width} is not a multiple of num_attention_heads {heads}")
    if (values["head_dim"] or width // heads) % 2:
        raise ValueError(
            f"head_dim must be even (rotary positions turn pairs), got {values['head_dim'] or width // heads}"
        )
    shared = values["num_key_value_heads"]
    if shared is not None and heads % shared:
        raise ValueError(f"num_attention_heads {heads} is not a multiple of num_key_value_heads {shared}")
    encoder_width, encoder_heads = values["speech_encoder_hidden_size"], values["speech_encoder_heads"]
    if encoder_width % encoder_heads:
        raise ValueError(
            f"speech_encoder_hidden_size {encoder_width} is not a multiple of speech_encoder_heads {encoder_heads}"
        )
