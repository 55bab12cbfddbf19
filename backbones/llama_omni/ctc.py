"""Connectionist temporal classification over speech units: collapsing frames, and the loss over spoken turns.

The blank is the last class (id = unit_vocab_size).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


def collapse_frames(frames: Tensor, blank: int, previous: int | None = None) -> Tensor:
    """The units that (frames,) of class ids stand for: repeats merged, then blanks dropped.

    `previous` is the last frame of the chunk before, so that chunks collapse to what the whole would.
    """
    if frames.dim() != 1:
        raise ValueError(f"frames must be one-dimensional, got shape {tuple(frames.shape)}")
    is_new = torch.ones_like(frames, dtype=torch.bool)
    is_new[1:] = frames[1:] != frames[:-1]
    if previous is not None and frames.numel() > 0:
        is_new[0] = frames[0] != previous
    return frames[is_new & (frames != blank)]


def frames_needed(units: Tensor) -> int:
    """The fewest frames that can say `units` (U,): one each, and a blank between equal neighbours."""
    return units.numel() + int((units[1:] == units[:-1]).sum())


@dataclass(frozen=True)
class SpokenTurn:
    """One assistant turn that is also spoken.

    start, end: the turn's label positions [start, end) in the sample's spliced sequence, counted from its first real
    position. units: (U,) speech units of the turn, repeats already merged.
    """

    start: int
    end: int
    units: Tensor


@dataclass(frozen=True)
class SpeechLoss:
    """`loss`: summed negative log-likelihood divided by the summed unit lengths (a scalar, FP32).

    `infeasible`: how many of the turns have more units than frames can say; they add 0 to the sum.
    """

    loss: Tensor
    infeasible: int
    turns: int


def upsampled_length(tokens: int, units: int, frames_per_token: int) -> int:
    """Frames of a turn in training: `frames_per_token` a token, or one a unit where the units are more."""
    return max(tokens * frames_per_token, units)


def spread(states: Tensor, frames: int) -> Tensor:
    """(tokens, C) -> (frames, C): each state repeated, as evenly as whole frames allow."""
    # Whole-number arithmetic: the release divides by a float32 ratio, which can round across a boundary.
    source = torch.arange(frames, device=states.device) * states.shape[0] // frames
    return states[source]


def check_units(units: Tensor, unit_vocab_size: int, where: str) -> None:
    """Raises ValueError unless `units` is a non-empty (U,) of ids below `unit_vocab_size`."""
    if units.dim() != 1 or units.numel() == 0:
        raise ValueError(f"{where} needs at least one unit in a one-dimensional tensor, got {tuple(units.shape)}")
    if units.is_floating_point() or units.dtype == torch.bool:
        raise ValueError(f"{where} needs units as whole numbers, got {units.dtype}")
    low, high = int(units.min()), int(units.max())
    if low < 0 or high >= unit_vocab_size:
        raise ValueError(f"{where} has units from {low} to {high}; the generator knows 0 to {unit_vocab_size - 1}")


def summed_ctc(logits: Tensor, frame_lengths: Sequence[int], targets: Sequence[Tensor], blank: int) -> Tensor:
    """Summed CTC loss of a group of turns, in FP32; an infeasible target adds 0.

    logits (turns, frames, units + 1), right-padded; frame_lengths and targets one per turn.
    """
    log_probabilities = functional.log_softmax(logits.float(), dim=-1)
    return functional.ctc_loss(
        log_probabilities.transpose(0, 1),
        torch.cat(list(targets)).to(logits.device),
        torch.tensor(frame_lengths, device=logits.device),
        torch.tensor([target.numel() for target in targets], device=logits.device),
        blank=blank,
        reduction="sum",
        zero_infinity=True,
    )


def groups_by_length(lengths: Sequence[int], most_frames: int) -> list[list[int]]:
    """Indices grouped from short to long so that a padded group holds at most `most_frames` frames (or one turn)."""
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda turn: lengths[turn]):
        if groups and (len(groups[-1]) + 1) * lengths[index] <= most_frames:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups
