"""Rotary positions in interleaved pairs, tables made on the fly (buffers that `.to()` touches lose precision)."""

from __future__ import annotations

import torch
from torch import Tensor


def rotate(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    """Turn each pair (x_{2m}, x_{2m+1}) of x (B, H, T, d) by positions * theta^(-2m/d).

    positions: (T,), or (B, T) when rows stand at different places. Angles are computed in FP32 at least, in x's
    dtype where that is wider.
    """
    d = x.shape[-1]
    dtype = torch.promote_types(x.dtype, torch.float32)
    frequencies = theta ** (-torch.arange(0, d, 2, device=x.device, dtype=dtype) / d)
    angles = positions.to(dtype).unsqueeze(-1) * frequencies
    if positions.dim() == 2:
        angles = angles.unsqueeze(1)
    cos, sin = angles.cos(), angles.sin()
    a, b = x.unflatten(-1, (d // 2, 2)).unbind(-1)
    return torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)
