"""The small language model with TTT in its top layer, and how it is streamed under a treatment.

Legend: N streams, T positions, V text tokens.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from moshi.models.lm import LMModel
from torch import Tensor, nn

from backbones.moshi import give_ring_room
from backbones.moshi.mount import ttt_modules
from experiments.drift.configuration import ModelPart, Treatment
from experiments.fact_streams.mounted_models import build_with_ttt_on_top
from experiments.fact_streams.reading import model_inputs


def build_model(part: ModelPart, seed: int, treatment: Treatment | None = None) -> LMModel:
    """The untrained model: FP32 states, or those of the treatment. All treatments of a seed share every weight."""
    config = part.ttt if treatment is None else treatment.applied_to(part.ttt)
    return build_with_ttt_on_top(part.model, part.stream, seed, config)


def build_treated(part: ModelPart, seed: int, treatment: Treatment, weights: dict[str, Tensor]) -> LMModel:
    """The trained weights in a model whose inner weights are kept as the treatment says, ready to stream."""
    lm = build_model(part, seed, treatment)
    lm.load_state_dict(weights)
    return give_ring_room(lm.eval(), part.tokens_per_call)


@torch.no_grad()
def streamed_logits(lm: LMModel, codes: Tensor, tokens_per_call: int, treatment: Treatment) -> Tensor:
    """(N, T, V) text logits, teacher-forced, `tokens_per_call` positions a call through the package's streaming.

    codes: (N, streams, T). The model must have room in its rings (`give_ring_room`). On the model's device; the logits
    come back to main memory.
    """
    inputs, logits = model_inputs(lm, codes.to(lm.device)), []
    with _autocast_around_ttt(lm, treatment.under_autocast), lm.streaming(codes.shape[0]):
        for part in inputs.split(tokens_per_call, dim=2):
            logits.append(lm.forward_text(part)[1][:, 0].cpu())
    return torch.cat(logits, dim=1)


@contextmanager
def _autocast_around_ttt(lm: LMModel, is_wanted: bool) -> Generator[None]:
    """Autocast to bfloat16 around every TTT layer, and not around the rest.

    The package's ring takes keys in the model's dtype alone: under an autocast around the whole model it refuses the
    narrowed ones ("scatter(): Expected self.dtype to be equal to src.dtype").
    """
    hooks: list[Any] = []
    if is_wanted:
        for module in ttt_modules(lm).values():
            hooks += _autocast_hooks(module)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _autocast_hooks(module: nn.Module) -> list[Any]:
    autocast = torch.autocast(next(module.parameters()).device.type, dtype=torch.bfloat16)

    def enter(_module: nn.Module, _arguments: Any) -> None:
        autocast.__enter__()

    def leave(_module: nn.Module, _arguments: Any, _output: Any) -> None:
        autocast.__exit__(None, None, None)

    return [module.register_forward_pre_hook(enter), module.register_forward_hook(leave, always_call=True)]
