"""TTT as the published video operators compute it: whole mini-batches are read.

With W the weights at the start of a mini-batch, G the gradient sums of earlier calls in it and c_i the scale of row i,

    this package    W_i = W - c_i (G + sum_{j <= i} eta_j g_j)
    here            W_i = W - c_i (G + sum_{all j}  eta_j g_j)        j over the mini-batch's tokens of this call

so a token reads up to b - 1 later ones. What is committed is the same. A call of one token has no later ones: decoding
token by token is causal whatever was trained, which is why no configuration offers this form and only a measurement
enters it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from ttt_core import TTTLayer


class _WholeMiniBatchLayer(TTTLayer):
    """A TTTLayer whose calls of several tokens have no limit j <= i."""

    def picked_backend(self, tokens: int) -> str:
        """The definition goes token by token and can't read ahead, so it is left to calls of one."""
        return "sequential" if tokens == 1 else "chunked"

    def read_scores(self, scores: Tensor) -> Tensor:
        return scores


@contextmanager
def sees_whole_mini_batches(model: nn.Module) -> Iterator[None]:
    """Inside, every row of every TTTLayer in `model` reads its whole mini-batch, in calls of several tokens.

    The layers change class, as mounting does it: their parameters, hooks and names stay. They are what they were when
    the context is left, however it is left. Raises ValueError for a model without TTT.
    """
    layers = [module for module in model.modules() if isinstance(module, TTTLayer)]
    if not layers:
        raise ValueError(f"the {type(model).__name__} has no TTTLayer to change: mount TTT on it first")
    classes = [layer.__class__ for layer in layers]
    try:
        for layer in layers:
            layer.__class__ = _WholeMiniBatchLayer
        yield
    finally:
        for layer, own in zip(layers, classes, strict=True):
            layer.__class__ = own
