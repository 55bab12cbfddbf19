"""Rotary positions in interleaved pairs, tables made on the fly (buffers that `.to()` touches lose precision)."""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_tables(positions: Tensor, d: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines (T, d/2), or (B, 1, T, d/2), of the angles positions * theta^(-2m/d).

    positions: (T,), or (B, T) when rows stand at different places. Angles are computed in FP32 at least, in `dtype`
    where that is wider.
    """
    dtype = torch.promote_types(dtype, torch.float32)
    frequencies = theta ** (-torch.arange(0, d, 2, device=positions.device, dtype=dtype) / d)
    angles = positions.to(dtype).unsqueeze(-1) * frequencies
    if positions.dim() == 2:
        angles = angles.unsqueeze(1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Turn each pair (x_{2m}, x_{2m+1}) of x (B, H, T, d) by its angle in the `rotary_tables`."""
    cos, sin = tables
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)
