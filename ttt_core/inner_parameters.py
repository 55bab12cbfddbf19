"""The parameters that the inner loop reads, kept in FP32 at least whatever is done to the model around them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ttt_core.config import TTTConfig
from ttt_core.inner_model import InnerNorm, InnerWeights

INITIAL_STD = 0.02


class LoopInputs(NamedTuple):
    """The inner parameters as one call reads them, in its working dtype. gate_weight, gate_bias: of the step size."""

    norm: InnerNorm
    gate_weight: Tensor  # (H, C)
    gate_bias: Tensor  # (H,)
    row_scales: Tensor  # (b,)


class InnerParameters(nn.Module):
    """Everything the inner loop reads, kept in FP32 at least through every cast of the model around it.

    W1, b1[, W2, b2]: the learned starting weights. norm_weight, norm_bias: (H, d), the inner LayerNorm.
    step_size_weight (H, C), step_size_bias (H,): the gate of each token's step size.
    row_offsets: (b,), added to 1/(i+1) to give the row scales c_i.
    """

    def __init__(self, config: TTTConfig) -> None:
        super().__init__()
        heads, d = config.num_heads, config.resolved_head_dim
        dtype = torch.promote_types(torch.get_default_dtype(), torch.float32)

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(*shape, dtype=dtype))

        widths = config.inner_widths
        self.W1, self.b1 = parameter(heads, widths[0], widths[1]), parameter(heads, 1, widths[1])
        if config.inner_model == "mlp":
            self.W2, self.b2 = parameter(heads, widths[1], widths[2]), parameter(heads, 1, widths[2])
        self.norm_weight, self.norm_bias = parameter(heads, d), parameter(heads, d)
        self.step_size_weight, self.step_size_bias = parameter(heads, config.hidden_size), parameter(heads)
        self.row_offsets = parameter(config.mini_batch_size)
        self.is_mlp = config.inner_model == "mlp"
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for weight in self.weights.tensors[0::2]:
            nn.init.normal_(weight, std=INITIAL_STD)
        for bias in self.weights.tensors[1::2]:
            nn.init.zeros_(bias)
        nn.init.ones_(self.norm_weight)
        nn.init.zeros_(self.norm_bias)
        nn.init.normal_(self.step_size_weight, std=INITIAL_STD)
        nn.init.zeros_(self.step_size_bias)
        nn.init.zeros_(self.row_offsets)

    @property
    def weights(self) -> InnerWeights:
        return InnerWeights(self.W1, self.b1, self.W2, self.b2) if self.is_mlp else InnerWeights(self.W1, self.b1)

    @property
    def norm(self) -> InnerNorm:
        return InnerNorm(self.norm_weight.unsqueeze(1), self.norm_bias.unsqueeze(1))

    @property
    def row_scales(self) -> Tensor:
        """c_i = max(0, 1/(i+1) + offset_i), (b,)."""
        return _row_scales(self.row_offsets)

    def initial_in(self, dtype: torch.dtype) -> InnerWeights:
        """The learned starting weights in `dtype`."""
        return self.weights.map(lambda tensor: tensor.to(dtype))

    def in_dtype(self, dtype: torch.dtype) -> LoopInputs:
        """What every token's step reads of these parameters, computed in `dtype`."""
        weight, bias = self.norm
        return LoopInputs(
            norm=InnerNorm(weight.to(dtype), bias.to(dtype)),
            gate_weight=self.step_size_weight.to(dtype),
            gate_bias=self.step_size_bias.to(dtype),
            row_scales=_row_scales(self.row_offsets.to(dtype)),
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> InnerParameters:
        """`.to(bfloat16)`, `.half()` and the casts of FSDP and DeepSpeed all pass here: move, but never narrow."""

        def move_without_narrowing(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if moved.is_floating_point() and moved.element_size() < 4:
                return tensor.to(device=moved.device, dtype=torch.promote_types(tensor.dtype, torch.float32))
            return moved

        super()._apply(move_without_narrowing, recurse)
        return self


def _row_scales(offsets: Tensor) -> Tensor:
    rows = torch.arange(1, offsets.shape[0] + 1, device=offsets.device, dtype=offsets.dtype)
    return (1.0 / rows + offsets).clamp_min(0.0)
