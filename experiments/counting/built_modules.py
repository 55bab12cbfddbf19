"""Published models as real modules on the meta device, which hold no weights: their parameters, and what they fix.

Every class is its package's own (transformers, moshi, openai-whisper), but of Qwen + Mimi, which is this repository's;
dimensions are those of the card.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen2AudioEncoder,
    Qwen2AudioEncoderConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from whisper.model import AudioEncoder

from backbones.llama_omni import LlamaOmniConfig
from backbones.qwen_mimi import QwenMimi, QwenMimiConfig
from backbones.speech import MEL_FRAME_RATE_HZ
from experiments.counting.cards import Card

FAMILIES: Mapping[str, tuple[type[Any], type[PreTrainedModel]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "litgpt": (Qwen2Config, Qwen2ForCausalLM),  # Mini-Omni's own code, with Qwen2's weights in it
    "mixtral": (MixtralConfig, MixtralForCausalLM),
}
WHISPER_POSITIONS, WHISPER_HEAD_DIM = 1500, 64


def parameters_of(module: nn.Module) -> int:
    """Parameters, those that two places share counted once."""
    return sum(parameter.numel() for parameter in module.parameters())


def language_model_parameters(card: Card) -> int:
    """Of the language model, with its embeddings where they are its own (Moshi's are a part, as its streams are)."""
    if card.hosts == "moshi":
        moshi = _moshi()
        return parameters_of(moshi.transformer) + parameters_of(moshi.out_norm)
    if card.hosts not in FAMILIES:
        raise ValueError(
            f"{card.name}: nothing builds the family {card.hosts!r}; there are moshi, {', '.join(FAMILIES)}"
        )
    config_class, model_class = FAMILIES[card.hosts]
    with torch.device("meta"):
        return parameters_of(model_class(_config(config_class, card.decoder)))


def part_parameters(card: Card) -> dict[str, int | None]:
    """{part: parameters}: built where its dimensions are known, else the published number; None where unknown.

    Raises ValueError for a kind that nothing here builds.
    """
    return {part["name"]: _part_parameters(card, part) for part in card.parts}


def facts_of_modules(card: Card) -> dict[str, float]:
    """Facts of a card that installed packages fix as well: positions a second heard, context, streams."""
    if card.hosts == "moshi":
        from moshi.models import loaders

        kwargs = loaders._lm_kwargs
        return {
            "heard_positions_hz": loaders.FRAME_RATE,
            "context_positions": kwargs["context"],
            "token_streams": kwargs["n_q"] + 1,
        }
    encoder = card.part("whisper_encoder")
    if encoder is None:
        return {}
    if card.name == "qwen2-audio":
        with torch.device("meta"):
            frames_hz = MEL_FRAME_RATE_HZ / _strides(Qwen2AudioEncoder(Qwen2AudioEncoderConfig()))
    else:
        frames_hz = MEL_FRAME_RATE_HZ / _strides(_whisper_encoder(encoder))
    projector = card.part("linears")
    frames_a_position = 1 if projector is None else projector["widths"][0] / encoder["width"]
    facts = {"heard_positions_hz": frames_hz / frames_a_position}
    if card.name == "llama-omni":
        facts["context_positions"] = LlamaOmniConfig().max_position_embeddings
    return facts


def _config(config_class: type[Any], decoder: Mapping[str, Any]) -> Any:
    experts = {"num_local_experts": decoder["experts"]} if "experts" in decoder else {}
    vocabulary: dict[str, Any] = {}
    if "vocabulary" in decoder:  # layers that are a part have none
        vocabulary = {"vocab_size": decoder["vocabulary"], "tie_word_embeddings": decoder["is_tied"]}
    return config_class(
        hidden_size=decoder["width"], num_hidden_layers=decoder["layers"], num_attention_heads=decoder["heads"],
        num_key_value_heads=decoder["kv_heads"], head_dim=decoder["head_dim"], intermediate_size=decoder["mlp_width"],
        **vocabulary, **experts,
    )  # fmt: skip


def _part_parameters(card: Card, part: Mapping[str, Any]) -> int | None:
    if part["kind"] == "unknown":
        return None
    if part["kind"] not in _BUILDERS:
        raise ValueError(
            f"{card.name}: nothing builds a part of kind {part['kind']!r}; there are {', '.join(_BUILDERS)}"
        )
    return _BUILDERS[part["kind"]](part)


def _published(part: Mapping[str, Any]) -> int:
    return int(part["parameters"])


def _encoder_parameters(part: Mapping[str, Any]) -> int:
    return parameters_of(_whisper_encoder(part))


def _whisper_encoder(part: Mapping[str, Any]) -> nn.Module:
    with torch.device("meta"):
        return AudioEncoder(
            part["mel_bins"], WHISPER_POSITIONS, part["width"], part["width"] // WHISPER_HEAD_DIM, part["layers"]
        )


def _linears(part: Mapping[str, Any]) -> int:
    return _linear_parameters(list(pairwise(part["widths"])))


def _separate_linears(part: Mapping[str, Any]) -> int:
    return _linear_parameters(part["pairs"])


def _linear_parameters(pairs: list[Any]) -> int:
    with torch.device("meta"):
        return sum(parameters_of(nn.Linear(into, out)) for into, out in pairs)


def _decoder_layers(part: Mapping[str, Any]) -> int:
    with torch.device("meta"):
        return parameters_of(LlamaForCausalLM(_config(LlamaConfig, part)).model.layers)


def _moshi_streams(part: Mapping[str, Any]) -> int:
    moshi = _moshi()
    return sum(parameters_of(module) for module in (moshi.emb, moshi.text_emb, moshi.text_linear))


def _moshi_depth(part: Mapping[str, Any]) -> int:
    """All that is neither the temporal transformer nor a stream's embedding."""
    moshi = _moshi()
    rest = (moshi.transformer, moshi.out_norm, moshi.emb, moshi.text_emb, moshi.text_linear)
    return parameters_of(moshi) - sum(map(parameters_of, rest))


def _code_embeddings(part: Mapping[str, Any]) -> int:
    return parameters_of(_qwen_mimi().code_embedding)


def _qwen_depth(part: Mapping[str, Any]) -> int:
    return parameters_of(_qwen_mimi().depth)


_BUILDERS: Mapping[str, Callable[[Mapping[str, Any]], int]] = {
    "whisper_encoder": _encoder_parameters,
    "linears": _linears,
    "separate_linears": _separate_linears,
    "decoder_layers": _decoder_layers,
    "moshi_streams": _moshi_streams,
    "moshi_depth": _moshi_depth,
    "code_embeddings": _code_embeddings,
    "qwen_depth": _qwen_depth,
    "published": _published,
}


@cache
def _moshi() -> Any:
    """The package's own 7B. Imported here: moshi looks for a GPU, which the process that forks must not."""
    from moshi.models import loaders
    from moshi.models.lm import LMModel

    return LMModel(**loaders._lm_kwargs, device="meta", dtype=torch.bfloat16)


@cache
def _qwen_mimi() -> QwenMimi:
    """Planned, and built here: no package has it."""
    with torch.device("meta"):
        return QwenMimi(QwenMimiConfig.planned())


def _strides(module: nn.Module) -> int:
    """Mel frames that one of the module's outputs covers: its convolutions' and poolings' strides, multiplied."""
    strided = [part for part in module.modules() if isinstance(part, nn.Conv1d | nn.AvgPool1d)]
    return math.prod(part.stride[0] for part in strided)
