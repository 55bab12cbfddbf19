"""The commit: how a full mini-batch becomes the weights that the next one starts from.

Legend: B batch, H heads, b mini-batch size, W starting weights, G gradient sums, c_{b-1} the last row scale.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ttt_core.config import TTTConfig
from ttt_core.inner_model import InnerWeights, choose_rows, combine
from ttt_core.inner_parameters import InnerParameters
from ttt_core.precision import POLICIES, CommitPlace, PrecisionPolicy
from ttt_core.state import TTTState

_TINY = torch.finfo(torch.float32).tiny


class Carried(NamedTuple):
    """What passes from one mini-batch to the next, in the working dtype; velocity None without momentum."""

    weights: InnerWeights
    velocity: InnerWeights | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> Carried:
        return Carried(self.weights.map(change), None if self.velocity is None else self.velocity.map(change))

    def in_rows(self, rows: Tensor, otherwise: Carried) -> Carried:
        """This in the batch rows where `rows` (B,) is True, `otherwise` elsewhere."""
        weights = choose_rows(rows, self.weights, otherwise.weights)
        if self.velocity is None or otherwise.velocity is None:
            return Carried(weights)
        return Carried(weights, choose_rows(rows, self.velocity, otherwise.velocity))


@dataclass(frozen=True, kw_only=True)
class Commit:
    """The inner optimiser's step and the precision policy's rounding, for the mini-batches of one call.

    parameters: of the layer, for its learned starting weights. last_row_scale: c_{b-1}, in the working dtype.
    tokens_before: (B,) tokens before the call.
    """

    config: TTTConfig
    parameters: InnerParameters
    last_row_scale: Tensor
    tokens_before: Tensor

    @property
    def policy(self) -> PrecisionPolicy:
        return POLICIES[self.config.precision]

    def __call__(self, carried: Carried, sums: InnerWeights, plain: InnerWeights, position: int | Tensor) -> Carried:
        """What the next mini-batch starts from.

        plain: W - c_{b-1} G, which both forms have at hand: the step when no option is on.
        position: of the mini-batch, as in `CommitPlace`.
        """
        weights, velocity = plain, None
        if not self.config.takes_plain_inner_steps:
            weights, velocity = self._step(carried, sums)
        if self.policy.is_exact:
            return Carried(weights, velocity)
        weights = self._rounded(weights, position, first_tensor=0)
        if velocity is not None:
            velocity = self._rounded(velocity, position, first_tensor=len(velocity))
        return Carried(weights, velocity)

    def _step(self, carried: Carried, sums: InnerWeights) -> tuple[InnerWeights, InnerWeights | None]:
        config, initial = self.config, self.parameters.initial_in(self.last_row_scale.dtype)
        step = sums.map(lambda total: self.last_row_scale * total)
        if config.inner_clip_norm is not None:
            step = _clipped(step, config.inner_clip_norm)
        velocity = None
        if carried.velocity is not None:
            step = velocity = combine(step, carried.velocity, scale=config.inner_momentum)
        weights = combine(carried.weights, step, scale=-1.0)
        if config.inner_decay:
            away = carried.weights
            if config.inner_decay_toward == "initial":
                away = combine(away, initial, scale=-1.0)
            weights = combine(weights, away, scale=-config.inner_decay)
        if config.renormalises_inner_weights:
            weights = _renormalised(weights, initial)
        return weights, velocity

    def _rounded(self, weights: InnerWeights, position: int | Tensor, first_tensor: int) -> InnerWeights:
        size = self.config.mini_batch_size
        return InnerWeights.from_tensors(
            [
                self.policy.round(tensor, CommitPlace(self.tokens_before, position, size, index))
                for index, tensor in enumerate(weights.tensors, start=first_tensor)
            ]
        )


def commit_sizes(before: TTTState, after: TTTState) -> Tensor:
    """(B, H) the effective inner step: how far a head's weights went between two states, as a share of their norm.

    Over all tensors of the head together. States one mini-batch apart give the size of one commit, further apart that
    of the net change; 0 where nothing was committed. Raises ValueError when the states are not of the same streams.
    """
    if before.W1.shape != after.W1.shape or before.config.inner_model != after.config.inner_model:
        raise ValueError(
            f"the states are of other streams or layers: W1 is {tuple(before.W1.shape)} ({before.config.inner_model}) "
            f"before and {tuple(after.W1.shape)} ({after.config.inner_model}) after; give two states of one layer and "
            "batch"
        )
    start = before.working_weights
    moved = squared_norms(combine(after.working_weights, start, scale=-1.0).tensors)
    return (moved / squared_norms(start.tensors).clamp_min(_TINY)).sqrt().flatten(1)


def squared_norms(tensors: list[Tensor]) -> Tensor:
    """(..., H, 1, 1) sums of squares of each head's numbers over all the tensors (..., H, rows, columns)."""
    return torch.stack([tensor.square().sum(dim=(-2, -1), keepdim=True) for tensor in tensors]).sum(dim=0)


def _clipped(step: InnerWeights, largest_norm: float) -> InnerWeights:
    # Clamped before the root, whose slope at a step of zero is infinite.
    scale = largest_norm / squared_norms(step.tensors).clamp_min(largest_norm**2).sqrt()
    return step.map(lambda tensor: scale * tensor)


def _renormalised(weights: InnerWeights, initial: InnerWeights) -> InnerWeights:
    tensors: list[Tensor] = []
    for (W, b), (initial_W, initial_b) in zip(weights.maps, initial.maps, strict=True):
        wanted = squared_norms([initial_W, initial_b]).clamp_min(_TINY)
        scale = (wanted / squared_norms([W, b]).clamp_min(_TINY)).sqrt()
        tensors += [scale * W, scale * b]
    return InnerWeights.from_tensors(tensors)
