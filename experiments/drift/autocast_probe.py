"""What a layer's matrix products run in: counted where they are dispatched, behind autocast's casts."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from experiments.drift.state_streams import TreatedLayer
from ttt_core import TTTLayer

_PRODUCTS = {
    torch.ops.aten.mm.default, torch.ops.aten.bmm.default, torch.ops.aten.addmm.default, torch.ops.aten.baddbmm.default,
}  # fmt: skip


class _ProductCount(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.by_dtype: Counter[torch.dtype] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in _PRODUCTS:
            self.by_dtype[out.dtype] += 1
        return out


@torch.no_grad()
def narrow_inner_products(treated: TreatedLayer, vectors: Tensor) -> int:
    """Matrix products of the inner loop that run in bfloat16 in one call on vectors (R, T, C).

    The layer's projections around the inner loop, which autocast may narrow, are left out.
    """
    with treated.surroundings(), _ProductCount() as products:
        treated.layer(vectors)
    return products.by_dtype[torch.bfloat16] - (_projections(treated.layer) if treated.treatment.under_autocast else 0)


def _projections(layer: TTTLayer) -> int:
    return sum(linear is not None for linear in (layer.wq, layer.wk, layer.wv, layer.wo, layer.wg))
