"""Bytes really held: every distinct piece of memory that tensors reachable from an object live in.

Storages are counted and not tensors, so that a small view that keeps a large tensor alive counts as the large one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

# What holds no state of a stream: modules hold weights, and the rest holds no tensors.
_NOT_LOOKED_INTO = (nn.Module, type, str, bytes, int, float, torch.device, torch.dtype)


def held_bytes(root: object, besides: Iterable[Tensor] = ()) -> int:
    """Bytes of the storages reachable from `root` through containers and attributes, without those of `besides`."""
    storages: dict[int, int] = {}
    # The objects themselves are kept: an id is given again once its object is gone.
    seen: dict[int, object] = {}
    left = [root]
    while left:
        value = left.pop()
        if value is None or isinstance(value, _NOT_LOOKED_INTO) or id(value) in seen:
            continue
        seen[id(value)] = value
        if isinstance(value, Tensor):
            storage = value.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        elif isinstance(value, Mapping):
            left += value.values()
        elif isinstance(value, list | tuple | set):
            left += value
        elif hasattr(value, "__dict__"):
            left += vars(value).values()
    for tensor in besides:
        storages.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(storages.values())
