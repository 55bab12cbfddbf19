"""Tiny Moshi models that the tests of backbones.moshi share, and the two ways of running one: whole and streamed."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

if find_spec("moshi") is None:
    pytest.skip("needs moshi; runs where `make setup` was", allow_module_level=True)

from backbones.moshi import MoshiConfig, build_lm  # before moshi itself: it decides that nothing is compiled on a CPU
from ttt_core import TTTConfig

from moshi.models.lm import LMModel  # isort: skip

CONTEXT = 11
MINI_BATCH = 4


def text_lm(seed: int = 0, context: int | None = CONTEXT, **sizes: object) -> LMModel:
    """A text-only model of three layers, in eval mode."""
    torch.manual_seed(seed)
    config = MoshiConfig.text_only(dim=24, num_heads=3, num_layers=3, context=context, text_card=29)
    return build_lm(replace(config, **sizes))


def speaking_lm(seed: int = 0, **sizes: object) -> LMModel:
    """A model with two codebooks spoken, two heard and a depth transformer, in eval mode."""
    torch.manual_seed(seed)
    return build_lm(replace(MoshiConfig.at_scale("smoke"), context=CONTEXT, **sizes))


def small_ttt(lm: LMModel, inner_model: str = "mlp", **fields: object) -> TTTConfig:
    """TTT that fits a tiny model, with a step size at which the state matters after a few frames."""
    attention = lm.transformer.layers[0].self_attn
    settings = {
        "hidden_size": lm.dim, "num_heads": attention.num_heads, "mini_batch_size": MINI_BATCH, "base_lr": 1.0,
        "inner_model": inner_model,
    }  # fmt: skip
    return TTTConfig(**(settings | fields))


def open_gates(alphas: dict[int, torch.nn.Parameter], value: float = 0.7) -> None:
    with torch.no_grad():
        for alpha in alphas.values():
            alpha.fill_(value)


def text_codes(lm: LMModel, rows: int, frames: int, seed: int = 1) -> Tensor:
    """(B, K, T) codes as `forward_text` takes them."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randint(lm.text_card, (rows, 1, frames), generator=generator)
    audio = torch.randint(lm.card, (rows, lm.n_q, frames), generator=generator)
    return torch.cat([text, audio], dim=1)


@torch.no_grad()
def whole(lm: LMModel, codes: Tensor) -> Tensor:
    """(B, T, text_card) logits of one batched call."""
    return lm.forward_text(codes)[1][:, 0]


@torch.no_grad()
def streamed(lm: LMModel, codes: Tensor, tokens_per_call: int = 1) -> Tensor:
    """(B, T, text_card) logits of the same codes, so many frames per streaming call."""
    with lm.streaming(codes.shape[0]):
        parts = [lm.forward_text(part)[1][:, 0] for part in codes.split(tokens_per_call, dim=2)]
    return torch.cat(parts, dim=1)


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest expected value."""
    return float((found - expected).abs().max() / expected.abs().max())
