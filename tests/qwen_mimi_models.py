"""Tiny Qwen + Mimi models, frames for them, and a tiny Mimi with random weights, that several tests share."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from transformers import MimiConfig

from backbones.mounting import mount
from backbones.qwen_mimi import QwenMimi, QwenMimiConfig
from backbones.speech.mimi import MimiTokenizer
from ttt_core import TTTConfig

CODEBOOKS, CODES = 3, 32
WINDOW, SINKS, MINI_BATCH = 7, 2, 4
KINDS = ("plain", "ttt", "window")

Frames = tuple[Tensor, Tensor, Tensor]


def model_of(kind: str, seed: int = 0, **sizes: object) -> QwenMimi:
    """A model in eval mode: full attention, TTT over windows, or windows in every layer."""
    torch.manual_seed(seed)
    config = replace(QwenMimiConfig.at_scale("smoke"), **sizes)
    model = QwenMimi(config).eval()
    if kind == "ttt":
        ttt = TTTConfig(
            hidden_size=config.hidden_size, num_heads=config.num_attention_heads, mini_batch_size=MINI_BATCH,
            base_lr=1.0, projection_bias=True,
        )  # fmt: skip
        mount(model.decoder, layers=config.ttt_layers, config=ttt, window=WINDOW, sinks=SINKS)
    elif kind == "window":
        mount(model.decoder, layers=(), window=WINDOW, sinks=SINKS)
    return model


def frames_of(config: QwenMimiConfig, rows: int, frames: int, seed: int = 0) -> Frames:
    """Random text (B, T), codes said and codes heard (B, Q, T)."""
    random = torch.Generator().manual_seed(seed)
    text = torch.randint(config.no_text_id + 1, (rows, frames), generator=random)
    codes = torch.randint(config.codebook_size, (2, rows, config.codebooks, frames), generator=random)
    return text, codes[0], codes[1]


def tiny_mimi(seed: int = 0, codebooks: int = CODEBOOKS, codebook_size: int = CODES) -> MimiTokenizer:
    """A Mimi of a small width whose many codes are used; 12.5 frames a second, as the published one."""
    config = MimiConfig(
        hidden_size=32, num_filters=4, codebook_dim=16, vector_quantization_hidden_dimension=16,
        num_quantizers=codebooks, codebook_size=codebook_size, upsample_groups=32, num_hidden_layers=2,
        intermediate_size=48, num_attention_heads=4, num_key_value_heads=4, sliding_window=10,
    )  # fmt: skip
    return MimiTokenizer.random(config, seed, codebooks)
