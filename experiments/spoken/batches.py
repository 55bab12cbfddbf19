"""What the batches of every backbone have in common."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class AskedFact:
    """A fact value that the assistant is asked for.

    positions: (tokens,) positions of the value's tokens. distance: positions back to where it was last mentioned.
    seconds: from the end of the turn that mentioned it last to the start of the answer.
    """

    positions: Tensor
    distance: int
    seconds: float
