"""Small random language models of the real Moshi class, run whole or streamed, for the probes of this package."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from moshi.models.lm import LMModel
from moshi.utils.compile import no_compile
from torch import Tensor

from backbones.moshi import MoshiConfig, attention_layers, build_lm, gates, mount
from ttt_core import TTTConfig

InnerModel = Literal["linear", "mlp"]
# Open enough that what TTT does can be seen in the outputs; a new gate is closed.
OPENED_GATE = 0.7


@dataclass(frozen=True, kw_only=True)
class ProbeModel:
    """Size of a text-only Moshi with random weights; its layers are the published model's kind, small.

    context_steps: of its attention, which is also the ring's capacity as the package makes it.
    """

    layers: int = 2
    width: int = 32
    heads: int = 4
    context_steps: int = 7
    vocabulary: int = 61
    seed: int = 0


SMALL = ProbeModel()


@dataclass(frozen=True, kw_only=True)
class ProbeTTT:
    """TTT mounted on the last `layers` layers of a probe model (all of them when None)."""

    mode: Literal["replace", "gated"] = "replace"
    inner_model: InnerModel = "mlp"
    mini_batch_steps: int = 4
    layers: int | None = 1
    window_steps: int | None = None
    sinks: int = 0


def build_probe_lm(model: ProbeModel, ttt: ProbeTTT | None = None) -> LMModel:
    """The model in eval mode; the same weights for the same sizes and seed, whatever was drawn before."""
    config = MoshiConfig.text_only(
        dim=model.width, num_heads=model.heads, num_layers=model.layers, context=model.context_steps,
        text_card=model.vocabulary,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(model.seed)
        lm = build_lm(config).eval()
        if ttt is not None:
            _mount(lm, model, ttt)
    return lm.requires_grad_(False)


def let_see_the_future(lm: LMModel) -> LMModel:
    """The model with attention that masks nothing, batched only: what a probe for causality must be able to catch."""
    for attention in attention_layers(lm).values():
        attention.causal = False
    return lm


def random_tokens(model: ProbeModel, rows: int, positions: int, seed: int = 0) -> Tensor:
    """Tokens (rows, 1, positions) int64, as `LMModel.forward_text` takes them."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(model.vocabulary, (rows, 1, positions), generator=generator)


def whole_logits(lm: LMModel, tokens: Tensor) -> Tensor:
    """Logits (rows, positions, vocabulary) of one call: of a new stream's whole, or the next of an open one.

    Batched, the mask lets each position see its window.
    """
    # The package compiles its last norm wherever there is a GPU, also for a model that is not on it.
    with no_compile():
        return lm.forward_text(tokens)[1][:, 0]


def streamed_logits(lm: LMModel, tokens: Tensor, tokens_per_call: Sequence[int]) -> Tensor:
    """Logits (rows, positions, vocabulary) of the same tokens, given to a new stream in calls of these lengths."""
    first, outputs = 0, []
    with lm.streaming(tokens.shape[0]):
        for count in tokens_per_call:
            outputs.append(whole_logits(lm, tokens[:, :, first : first + count]))
            first += count
    return torch.cat(outputs, dim=1)


def relative_difference(values: Tensor, reference: Tensor) -> Tensor:
    """(positions,) largest |values - reference| over rows and vocabulary, in units of the largest |reference|.

    Both (rows, positions, vocabulary). NaN in `values` gives infinity: a position that has no output is not close.
    """
    difference = (values - reference).abs().nan_to_num(nan=torch.inf).amax(dim=(0, 2))
    return difference / reference.abs().max()


def _mount(lm: LMModel, model: ProbeModel, ttt: ProbeTTT) -> None:
    first = 0 if ttt.layers is None else model.layers - ttt.layers
    config = TTTConfig(
        hidden_size=model.width, num_heads=model.heads, inner_model=ttt.inner_model,
        mini_batch_size=ttt.mini_batch_steps,
    )  # fmt: skip
    mount(lm, range(first, model.layers), config, mode=ttt.mode, window=ttt.window_steps, sinks=ttt.sinks)
    with torch.no_grad():
        for alpha in gates(lm).values():
            alpha.fill_(OPENED_GATE)
