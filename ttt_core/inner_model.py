"""The inner model f: one or two affine maps per head, and the closed forms of its gradients.

Legend: B batch, H heads, n tokens, d head_dim, w_l width after map l.

`linear` is one affine map and `mlp` two with a tanh-GELU between them, so both are a chain
``x_0 -> z_1 = x_0 W_1 + b_1 -> x_1 = gelu(z_1) -> z_2 = x_1 W_2 + b_2`` of length one or two, and every
formula below is written once for the chain. The gradient of map l is the outer product of its input x_{l-1}
and the loss gradient at its output; these two *factors* are all that is ever kept of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ttt_core.config import INNER_NORM_EPS


class InnerWeights(NamedTuple):
    """Weights of every head's inner model, or their gradient sums; W2 and b2 are None for the linear one.

    W1 (..., H, d, w_1), b1 (..., H, 1, w_1), W2 (..., H, w_1, d), b2 (..., H, 1, d).
    """

    W1: Tensor
    b1: Tensor
    W2: Tensor | None = None
    b2: Tensor | None = None

    @property
    def maps(self) -> list[tuple[Tensor, Tensor]]:
        """The affine maps in order: [(W1, b1)] or [(W1, b1), (W2, b2)]."""
        if self.W2 is None or self.b2 is None:
            return [(self.W1, self.b1)]
        return [(self.W1, self.b1), (self.W2, self.b2)]

    @property
    def tensors(self) -> list[Tensor]:
        return [tensor for pair in self.maps for tensor in pair]

    @staticmethod
    def from_tensors(tensors: Sequence[Tensor]) -> InnerWeights:
        return InnerWeights(*tensors)

    def map(self, change: Callable[[Tensor], Tensor]) -> InnerWeights:
        return InnerWeights(*[change(tensor) for tensor in self.tensors])

    def for_rows(self, batch_size: int) -> InnerWeights:
        """The same weights in each of B rows: a leading batch axis, without copies."""
        return self.map(lambda tensor: tensor.expand(batch_size, *tensor.shape))


class InnerNorm(NamedTuple):
    """The inner LayerNorm's learned affine, one per head: weight and bias (H, 1, d)."""

    weight: Tensor
    bias: Tensor

    def __call__(self, z: Tensor) -> Tensor:
        """LayerNorm over the last axis of z (..., H, n, d)."""
        return normalise(z)[0] * self.weight + self.bias


class GradientFactors(NamedTuple):
    """For every affine map: its inputs (B, H, n, w_{l-1}) and the loss gradients at its outputs (B, H, n, w_l)."""

    inputs: list[Tensor]
    output_gradients: list[Tensor]
    losses: Tensor  # (B, H, n), the inner loss of every token


def normalise(z: Tensor) -> tuple[Tensor, Tensor]:
    """(z - mean) / std over the last axis with biased variance, and the reciprocal of std (..., 1)."""
    variance, mean = torch.var_mean(z, dim=-1, correction=0, keepdim=True)
    reciprocal_std = torch.rsqrt(variance + INNER_NORM_EPS)
    return (z - mean) * reciprocal_std, reciprocal_std


def gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def gelu_derivative(x: Tensor) -> Tensor:
    """Derivative of the tanh approximation of GELU."""
    slope = math.sqrt(2.0 / math.pi)
    tanh = torch.tanh(slope * x * (1.0 + 0.044715 * x * x))
    return 0.5 * (1.0 + tanh) + 0.5 * x * (1.0 - tanh * tanh) * slope * (1.0 + 3 * 0.044715 * x * x)


def predict(x: Tensor, weights: InnerWeights) -> Tensor:
    """f(x) for x (B, H, n, d)."""
    W1, b1 = weights.maps[0]
    z = x @ W1 + b1
    for W, b in weights.maps[1:]:
        z = gelu(z) @ W + b
    return z


def gradient_factors(k: Tensor, v: Tensor, weights: InnerWeights, norm: InnerNorm) -> GradientFactors:
    """Closed-form gradients of 1/2 || LN(f(k)) - (v - k) ||^2 with respect to `weights`, token by token.

    k, v: (B, H, n, d). Every token's gradient is taken at the same `weights`.
    """
    maps = weights.maps
    inputs, pre_activations = [k], []
    for index, (W, b) in enumerate(maps):
        z = inputs[-1] @ W + b
        pre_activations.append(z)
        if index + 1 < len(maps):
            inputs.append(gelu(z))

    normalised, reciprocal_std = normalise(pre_activations[-1])
    residual = normalised * norm.weight + norm.bias - (v - k)
    # The LayerNorm's Jacobian projects out the mean and the component along the normalised vector.
    at_normalised = residual * norm.weight
    along = (at_normalised * normalised).mean(dim=-1, keepdim=True)
    gradient = (at_normalised - at_normalised.mean(dim=-1, keepdim=True) - normalised * along) * reciprocal_std

    output_gradients = [gradient]
    for index in range(len(maps) - 1, 0, -1):
        gradient = (gradient @ maps[index][0].mT) * gelu_derivative(pre_activations[index - 1])
        output_gradients.insert(0, gradient)
    return GradientFactors(inputs, output_gradients, 0.5 * (residual * residual).sum(dim=-1))


def gradient_sums(factors: GradientFactors, step_sizes: Tensor) -> InnerWeights:
    """sum_j eta_j dl_j/dW over the tokens of `factors`; step_sizes (B, H, n, 1)."""
    sums: list[Tensor] = []
    for inputs, gradients in zip(factors.inputs, factors.output_gradients, strict=True):
        scaled = step_sizes * gradients
        # A cast only where autocast is let in: what is kept from token to token is not kept in its narrow dtype.
        sums += [(inputs.mT @ scaled).to(scaled.dtype), scaled.sum(dim=-2, keepdim=True)]
    return InnerWeights.from_tensors(sums)


def combine(left: InnerWeights, right: InnerWeights, scale: float | Tensor = 1.0) -> InnerWeights:
    """left + scale * right, tensor by tensor."""
    return InnerWeights.from_tensors([a + scale * b for a, b in zip(left.tensors, right.tensors, strict=True)])


def choose_rows(rows: Tensor, chosen: InnerWeights, otherwise: InnerWeights) -> InnerWeights:
    """`chosen` in the batch rows where `rows` (B,) is True, `otherwise` elsewhere; tensors (B, ...) of any form."""
    pick = rows.view(-1, *[1] * (chosen.W1.dim() - 1))
    pairs = zip(chosen.tensors, otherwise.tensors, strict=True)
    return InnerWeights.from_tensors([torch.where(pick, a, b) for a, b in pairs])


def zeros_like(weights: InnerWeights) -> InnerWeights:
    return weights.map(torch.zeros_like)
