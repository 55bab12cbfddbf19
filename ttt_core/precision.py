"""Precision policies: in what form inner weights are kept from one mini-batch to the next.

A weight passes through its policy where it is stored: at the commit of a mini-batch (`round`), and between calls
(`store`, `load`, which only pack and unpack what `round` has left). So a call's end rounds nothing, and any split of a
sequence into calls stays the same function. The gradient sums of the open mini-batch are at most b - 1 tokens old and
are never narrowed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

PrecisionName = Literal["fp32", "fp64", "bf16", "bf16_stochastic", "bf16_compensated", "fp16", "bf16_compute"]

STOCHASTIC_SEED = 20241
BITS_DROPPED_BY_BF16 = 16
_LOW_32_BITS = 0xFFFFFFFF


class CommitPlace(NamedTuple):
    """Which commit of each row is meant, for a policy whose rounding differs from commit to commit.

    tokens_before: (B,) tokens before the call.
    position: of any token in the mini-batch that is committed, counted from the start of the row's mini-batch that
        was open when the call began; (B,), or one number for all rows.
    tensor: index of the tensor among all that are committed together.
    """

    tokens_before: Tensor
    position: int | Tensor
    mini_batch_size: int
    tensor: int

    @property
    def number(self) -> Tensor:
        """(B,) mini-batches that each row has committed before this one."""
        return self.tokens_before // self.mini_batch_size + self.position // self.mini_batch_size


class PrecisionPolicy(Protocol):
    """How one tensor (B, ...) of inner weights is kept.

    bytes_per_number: of the stored form. is_exact: True when `round`, `store` and `load` change nothing.
    product_dtype: what matrix products of the inner loop run in, None for the working dtype.
    """

    @property
    def bytes_per_number(self) -> int: ...

    @property
    def is_exact(self) -> bool: ...

    @property
    def product_dtype(self) -> torch.dtype | None: ...

    def working_dtype(self, parameters: torch.dtype) -> torch.dtype:
        """What the inner loop computes in, where the layer's inner parameters are of dtype `parameters`."""
        ...

    def round(self, values: Tensor, place: CommitPlace | None) -> Tensor:
        """`values` as they are kept, in their own dtype; gradients pass straight through.

        place: of the commit, or None for the learned start of a stream, which is always rounded to nearest.
        """
        ...

    def store(self, values: Tensor) -> Tensor:
        """The form that is kept; exact on what `round` gave, rounded to nearest otherwise."""
        ...

    def load(self, stored: Tensor, dtype: torch.dtype) -> Tensor:
        """The stored numbers in a dtype that holds them exactly."""
        ...

    def stored_as(self, shape: tuple[int, ...], working: torch.dtype) -> tuple[tuple[int, ...], torch.dtype]:
        """Shape and dtype of the stored form of a tensor of that shape."""
        ...


@dataclass(frozen=True, kw_only=True)
class KeptExactly:
    """Stored as computed: in the parameters' dtype (FP32, or FP64 in a layer made so by .double()) or in `dtype`."""

    dtype: torch.dtype | None = None
    product_dtype: torch.dtype | None = None
    is_exact: bool = True

    @property
    def bytes_per_number(self) -> int:
        return 4 if self.dtype is None else self.dtype.itemsize

    def working_dtype(self, parameters: torch.dtype) -> torch.dtype:
        return parameters if self.dtype is None else self.dtype

    def round(self, values: Tensor, place: CommitPlace | None) -> Tensor:
        return values

    def store(self, values: Tensor) -> Tensor:
        return values

    def load(self, stored: Tensor, dtype: torch.dtype) -> Tensor:
        return stored

    def stored_as(self, shape: tuple[int, ...], working: torch.dtype) -> tuple[tuple[int, ...], torch.dtype]:
        return shape, working


@dataclass(frozen=True, kw_only=True)
class RoundedToNearest:
    """Every commit rounds to the nearest number of a 16-bit dtype, ties to even."""

    dtype: torch.dtype
    product_dtype: torch.dtype | None = None
    bytes_per_number: int = 2
    is_exact: bool = False

    def working_dtype(self, parameters: torch.dtype) -> torch.dtype:
        return parameters

    def round(self, values: Tensor, place: CommitPlace | None) -> Tensor:
        return _straight_through(values, values.detach().to(self.dtype).to(values.dtype))

    def store(self, values: Tensor) -> Tensor:
        return values.to(self.dtype)

    def load(self, stored: Tensor, dtype: torch.dtype) -> Tensor:
        return stored.to(dtype)

    def stored_as(self, shape: tuple[int, ...], working: torch.dtype) -> tuple[tuple[int, ...], torch.dtype]:
        return shape, self.dtype


@dataclass(frozen=True, kw_only=True)
class RoundedStochastically:
    """Every commit rounds to one of the two neighbours in bfloat16, the nearer one more often: right on average.

    The random bits are a hash of (number of the row's commit, tensor, element), so they are the same however the
    stream is split, wherever its row stands in a batch, and after saving and loading. Rows at the same commit share
    them. Numbers that bfloat16 holds stay as they are.
    """

    product_dtype: torch.dtype | None = None
    bytes_per_number: int = 2
    is_exact: bool = False

    def working_dtype(self, parameters: torch.dtype) -> torch.dtype:
        return parameters

    def round(self, values: Tensor, place: CommitPlace | None) -> Tensor:
        if place is None:
            return _straight_through(values, values.detach().to(torch.bfloat16).to(values.dtype))
        narrow = values.detach().float()
        # The 16 bits that bfloat16 lacks are a fraction of its last place: adding 16 random bits carries into the
        # kept half with that fraction's probability. Sign and magnitude are apart, so negative numbers do the same.
        bits = narrow.view(torch.int32) + _random_bits(values.shape, place, BITS_DROPPED_BY_BF16)
        rounded = (bits >> BITS_DROPPED_BY_BF16 << BITS_DROPPED_BY_BF16).view(torch.float32)
        return _straight_through(values, torch.where(narrow.isfinite(), rounded, narrow).to(values.dtype))

    def store(self, values: Tensor) -> Tensor:
        return values.to(torch.bfloat16)

    def load(self, stored: Tensor, dtype: torch.dtype) -> Tensor:
        return stored.to(dtype)

    def stored_as(self, shape: tuple[int, ...], working: torch.dtype) -> tuple[tuple[int, ...], torch.dtype]:
        return shape, torch.bfloat16


@dataclass(frozen=True, kw_only=True)
class Compensated:
    """A pair of bfloat16 on a last axis of 2: the number rounded, and what that rounding left, rounded again.

    The remainder is exact before its own rounding, and the sum of the pair is a number of the working dtype, so the
    pair has 16 or 17 significant bits and loading is exact.
    """

    product_dtype: torch.dtype | None = None
    bytes_per_number: int = 4
    is_exact: bool = False

    def working_dtype(self, parameters: torch.dtype) -> torch.dtype:
        return parameters

    def round(self, values: Tensor, place: CommitPlace | None) -> Tensor:
        return _straight_through(values, self.load(self.store(values.detach()), values.dtype))

    def store(self, values: Tensor) -> Tensor:
        high = values.to(torch.bfloat16)
        return torch.stack((high, (values - high.to(values.dtype)).to(torch.bfloat16)), dim=-1)

    def load(self, stored: Tensor, dtype: torch.dtype) -> Tensor:
        high, low = stored.to(dtype).unbind(dim=-1)
        return high + low

    def stored_as(self, shape: tuple[int, ...], working: torch.dtype) -> tuple[tuple[int, ...], torch.dtype]:
        return (*shape, 2), torch.bfloat16


POLICIES: dict[str, PrecisionPolicy] = {
    "fp32": KeptExactly(),
    "fp64": KeptExactly(dtype=torch.float64),
    "bf16": RoundedToNearest(dtype=torch.bfloat16),
    "bf16_stochastic": RoundedStochastically(),
    "bf16_compensated": Compensated(),
    "fp16": RoundedToNearest(dtype=torch.float16),
    "bf16_compute": KeptExactly(product_dtype=torch.bfloat16),
}


def _straight_through(values: Tensor, rounded: Tensor) -> Tensor:
    """`rounded`, with the gradient of `values`: the difference of neighbours is exact, and so is adding it."""
    return values + (rounded - values).detach() if values.requires_grad else rounded


def _random_bits(shape: torch.Size, place: CommitPlace, bits: int) -> Tensor:
    """int32 of the given shape (B, ...), uniform in 0 .. 2^bits - 1, a function of `place` and the element alone."""
    stream = _mixed(_mixed(place.number + STOCHASTIC_SEED) + place.tensor)
    elements = torch.arange(shape[1:].numel(), device=place.tokens_before.device)
    drawn = _mixed(stream[:, None] ^ _mixed(elements)[None])
    return (drawn >> 32 - bits).to(torch.int32).view(shape)


def _mixed(numbers: Tensor) -> Tensor:
    """int64 holding 32 well-mixed bits (the finaliser "lowbias32" that Chris Wellons found by search, 2018).

    Products overflow 64 bits by wrapping, which leaves the low 32 bits right.
    """
    numbers = numbers & _LOW_32_BITS
    numbers = ((numbers ^ (numbers >> 16)) * 0x7FEB352D) & _LOW_32_BITS
    numbers = ((numbers ^ (numbers >> 15)) * 0x846CA68B) & _LOW_32_BITS
    return numbers ^ (numbers >> 16)
