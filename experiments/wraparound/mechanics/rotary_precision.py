"""What far positions do to rotary embeddings, in FP32 as the package has them, and in the dtypes it does not use.

A query and a key at a fixed distance should score the same wherever they stand. The package keeps positions as int64
and turns them to FP32 before the rotation's angles are computed; 16-bit positions or counters would run out of whole
numbers within seconds or minutes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from moshi.models.loaders import FRAME_RATE, _lm_kwargs
from moshi.modules.rope import apply_rope
from moshi.modules.transformer import create_sin_embedding
from moshi.utils.compile import no_compile
from numpy.typing import NDArray
from torch import Tensor

MAX_PERIOD: float = float(_lm_kwargs["max_period"])
PUBLISHED_HEAD_WIDTH: int = _lm_kwargs["dim"] // _lm_kwargs["num_heads"]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_SCANNED_AT_ONCE = 1 << 20


@dataclass(frozen=True, kw_only=True)
class RotarySizes:
    """offsets: positions of the key; distances: how far before the query it is; pairs: random (query, key) pairs."""

    offsets: tuple[int, ...] = (0, 3_000, 48_000, 1_000_000, 10_000_000)
    distances: tuple[int, ...] = (0, 1, 10, 100, 2_999)
    head_width: int = PUBLISHED_HEAD_WIDTH
    pairs: int = 64


@dataclass(frozen=True, kw_only=True)
class RotaryPrecision:
    """errors: (kind of position, offset) -> largest error of q.k, relative to |q| |k|, over distances and pairs.

    kinds: "package" (FP32 angles of whole positions), "bf16" and "fp16" (positions rounded to it first).
    collisions: dtype -> first position p for which p and p + 1 are the same number.
    stuck: dtype -> value at which a counter that adds 1 in that dtype stops.
    """

    errors: dict[tuple[str, int], float]
    collisions: dict[str, int]
    stuck: dict[str, int]
    sin_embedding_collision: int

    def metrics(self) -> dict[str, float]:
        metrics = {f"rotary/error_{kind}_offset_{offset}": value for (kind, offset), value in self.errors.items()}
        for dtype, position in self.collisions.items():
            metrics[f"rotary/first_position_equal_to_the_next_{dtype}"] = position
            metrics[f"rotary/seconds_until_positions_collide_{dtype}"] = position / FRAME_RATE
            metrics[f"rotary/counter_stops_at_{dtype}"] = self.stuck[dtype]
        metrics["rotary/first_position_equal_to_the_next_sin_embedding_bf16"] = self.sin_embedding_collision
        return {name: float(value) for name, value in metrics.items()}

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        arrays: dict[str, NDArray[np.generic]] = {}
        for kind in dict.fromkeys(kind for kind, _ in self.errors):
            rows = [(offset, value) for (of_kind, offset), value in self.errors.items() if of_kind == kind]
            arrays[f"rotary/offset_and_error_{kind}"] = np.array(rows)
        return arrays


@torch.no_grad()
def measure_rotary_precision(sizes: RotarySizes) -> RotaryPrecision:
    """Scores the same pairs at every offset with the package's rotation, and compares with FP64 at offset 0."""
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, sizes.pairs, 1, 1, sizes.head_width, generator=generator)
    errors = {}
    for offset in sizes.offsets:
        for kind in ("package", "bf16", "fp16"):
            errors[kind, offset] = max(_error(q, k, offset, distance, kind) for distance in sizes.distances)
    return RotaryPrecision(
        # FP16 has no number beyond 65,504: a position past it would be infinite, which is no error to average.
        errors={key: value for key, value in errors.items() if math.isfinite(value)},
        collisions={name: first_collision(dtype) for name, dtype in DTYPES.items()},
        stuck={name: counter_stops_at(dtype) for name, dtype in DTYPES.items()},
        sin_embedding_collision=first_sin_collision(torch.bfloat16),
    )


def first_collision(dtype: torch.dtype) -> int:
    """The first whole number that is the same as the next one in that dtype."""
    start = 0
    while True:
        numbers = torch.arange(start, start + _SCANNED_AT_ONCE + 1).to(dtype)
        (equal,) = torch.nonzero(numbers[1:] == numbers[:-1], as_tuple=True)
        if len(equal):
            return start + int(equal[0])
        start += _SCANNED_AT_ONCE


def counter_stops_at(dtype: torch.dtype) -> int:
    """Where a counter of that dtype stops when 1 is added again and again.

    Counting starts just below the dtype's first collision, before which adding 1 is exact.
    """
    counter = torch.tensor(first_collision(dtype) - 3, dtype=dtype)
    while bool(counter + 1 != counter):
        counter = counter + 1
    return int(counter)


def first_sin_collision(dtype: torch.dtype) -> int:
    """The first position whose sinusoidal embedding, made by the package in that dtype, is the next one's too.

    The package makes these in the input's dtype. No published Moshi uses them; `positional_embedding="sin"` would.
    """
    embeddings = create_sin_embedding(torch.arange(1 << 12).view(1, -1, 1), 32, dtype=dtype)[0]
    return int(torch.nonzero((embeddings[1:] == embeddings[:-1]).all(dim=-1))[0])


def _error(q: Tensor, k: Tensor, offset: int, distance: int, kind: str) -> float:
    """Largest |score - true score| / (|q| |k|) over the pairs (pairs, 1, 1, head_width)."""
    true = _score(*_rotated_in_double(q, k, distance))
    ends = torch.tensor([offset + distance, offset])
    if kind != "package":
        ends = ends.to(DTYPES[kind])
        if not bool(torch.isfinite(ends).all()):
            return math.inf
    # `apply_rope` takes one offset per row and turns q and k alike: q is read off one call and k off another.
    with no_compile():
        rotated_q = apply_rope(q, q, ends[0].expand(len(q)), MAX_PERIOD)[0]
        rotated_k = apply_rope(k, k, ends[1].expand(len(k)), MAX_PERIOD)[1]
    # Summed in FP64, so that the error is the rotation's alone.
    score = _score(rotated_q.double(), rotated_k.double())
    return float(((score - true).abs() / (q.double().norm(dim=-1) * k.double().norm(dim=-1))).max())


def _rotated_in_double(q: Tensor, k: Tensor, distance: int) -> tuple[Tensor, Tensor]:
    """q turned by `distance` positions and k left as it is, in FP64: interleaved pairs as complex numbers."""
    width = q.shape[-1]
    angles = distance * MAX_PERIOD ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    turned = torch.view_as_complex(q.double().unflatten(-1, (-1, 2))) * torch.polar(torch.ones_like(angles), angles)
    return torch.view_as_real(turned).flatten(-2), k.double()


def _score(q: Tensor, k: Tensor) -> Tensor:
    return (q * k).sum(dim=-1)
