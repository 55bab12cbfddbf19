"""Rotary frequencies of transformers models, kept exact through whatever casts or moves the model around them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def restore_rotary_frequencies(model: nn.Module, kind: type[nn.Module]) -> None:
    """Computes the frequencies of every rotary embedding of class `kind` anew, in FP32 on the device it is on now.

    To be called after `nn.Module._apply`: `.to(bfloat16)` would round them to 8 bits, so that at position 8,192 the
    fastest angle is off by 16 radians, and `.to_empty()` would leave them as uninitialised memory. On the meta device
    there is nothing to restore.
    """
    for module in model.modules():
        if not isinstance(module, kind):
            continue
        rotary: Any = module
        if rotary.inv_freq.device.type == "meta":
            continue
        with torch.device("cpu"):
            exact = type(rotary)(rotary.config)
        for name, frequencies in exact.named_buffers():
            rotary.register_buffer(name, frequencies.to(rotary.inv_freq.device), persistent=False)
