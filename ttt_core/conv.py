"""Causal depthwise convolution whose history is part of the layer's state."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CausalConv(nn.Module):
    """y_t = bias + sum_m weight[:, m] * x_{t - (kernel - 1) + m}, channel by channel; zeros before the stream."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.weight = nn.Parameter(torch.empty(channels, 1, kernel))
        self.bias = nn.Parameter(torch.empty(channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        bound = self.kernel**-0.5
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor, history: Tensor | None, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """x (B, T, C) with real tokens first, history (B, C, kernel - 1) the inputs before it or None.

        lengths: (B,) real tokens of each row, None for all T. Gives y (B, T, C) and the new history in FP32 or
        wider (exact for any narrower input).
        """
        batch, tokens, channels = x.shape
        before = self.kernel - 1
        if history is None:
            history = x.new_zeros(batch, channels, before)
        inputs = torch.cat([history.to(x.dtype), x.mT], dim=2)
        y = F.conv1d(inputs, self.weight, self.bias, groups=channels).mT
        if lengths is None:
            last = inputs[:, :, tokens:]
        else:
            index = lengths[:, None] + torch.arange(before, device=x.device)[None]
            last = inputs.gather(2, index[:, None].expand(-1, channels, -1))
        return y, last.to(torch.promote_types(last.dtype, torch.float32))
