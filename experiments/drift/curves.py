"""What one treatment does to a state along a stream, beside its reference: errors by updates, and what follows.

Legend: R rows, K checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy
import torch
from numpy.typing import NDArray

from experiments.drift.state_streams import Snapshot

Floats = NDArray[numpy.float64]
GAPS = (0.01, 0.05, 0.20)
"""Shares by which the inner loss may grow beyond the reference's: what is asked is when it first does."""


@dataclass(frozen=True, kw_only=True)
class DriftCurves:
    """One treatment against its reference; each array but `updates` (K,) is (R, K).

    state_error, output_error: norm of the difference relative to the norm of the reference. inner_loss: mean of a
    probe; reference_inner_loss: the reference's. lost_share, step_error: see `Snapshot`.
    """

    updates: Floats
    state_error: Floats
    output_error: Floats
    inner_loss: Floats
    reference_inner_loss: Floats
    lost_share: Floats
    step_error: Floats

    @property
    def inner_loss_gap(self) -> Floats:
        """(R, K) how much larger the inner loss is than the reference's, as a share of it."""
        return self.inner_loss / self.reference_inner_loss - 1

    def rows(self, chosen: Sequence[int]) -> DriftCurves:
        return DriftCurves(
            **{
                field.name: self.updates if field.name == "updates" else getattr(self, field.name)[list(chosen)]
                for field in fields(self)
            }
        )

    def at(self, updates: int) -> int:
        """Index of the checkpoint after so many updates. Raises ValueError where there is none."""
        found = numpy.flatnonzero(self.updates == updates)
        if not len(found):
            raise ValueError(f"there is no checkpoint after {updates} updates; the last is after {self.updates[-1]:g}")
        return int(found[0])

    def save(self, path: Path) -> None:
        numpy.savez_compressed(path, **{field.name: getattr(self, field.name) for field in fields(self)})

    @staticmethod
    def load(path: Path) -> DriftCurves:
        with numpy.load(path) as stored:
            return DriftCurves(**{name: stored[name] for name in stored.files})


def compare(updates: Sequence[int], found: Sequence[Snapshot], reference: Sequence[Snapshot]) -> DriftCurves:
    """Curves of one treatment's snapshots against its reference's, after the same updates."""
    pairs = list(zip(found, reference, strict=True))

    def by_row(values: Sequence[torch.Tensor]) -> Floats:
        return torch.stack(list(values), dim=1).numpy()

    return DriftCurves(
        updates=numpy.asarray(updates, dtype=numpy.float64),
        state_error=by_row([_relative(a.weights, b.weights) for a, b in pairs]),
        output_error=by_row([_relative(a.outputs, b.outputs) for a, b in pairs]),
        inner_loss=by_row([a.inner_loss for a in found]),
        reference_inner_loss=by_row([b.inner_loss for b in reference]),
        lost_share=by_row([a.lost_share for a in found]),
        step_error=by_row([a.step_error for a in found]),
    )


def _relative(found: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    return (found - reference).flatten(1).norm(dim=1) / reference.flatten(1).norm(dim=1)


def growth_exponent(updates: Floats, errors: Floats, from_updates: float) -> float:
    """Slope of log error (K,) against log updates (K,), by least squares from so many updates on.

    NaN with fewer than three errors above 0 there: nothing grows.
    """
    used = (updates >= from_updates) & (errors > 0) & numpy.isfinite(errors)
    if used.sum() < 3:
        return float("nan")
    return float(numpy.polyfit(numpy.log(updates[used]), numpy.log(errors[used]), deg=1)[0])


def first_beyond(places: Floats, gaps: Floats, threshold: float) -> float:
    """First of the places (K,) whose gap (K,) is beyond the threshold; NaN for never (the end is all that is known).

    A gap that is no number is beyond every threshold: what broke down did not stay close.
    """
    beyond = (gaps > threshold) | ~numpy.isfinite(gaps)
    return float(places[beyond.argmax()]) if beyond.any() else float("nan")
