"""Eval mode for the time being, every module back in its own mode afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Generator

from torch import nn


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Generator[None]:
    """Eval mode within it: what dropout or a training-only path does has no place in a reply."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
