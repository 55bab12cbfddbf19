"""Which states speak which units: the two alignments of text and speech, for whole samples and for turns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, cast

import torch
from torch import Tensor

from backbones.llama_omni.ctc import SpokenTurn
from backbones.llama_omni.splicing import IGNORED_LABEL, SplicedInputs

CTCAlignment = Literal["predicting", "original"]
TargetUnits = Tensor | Sequence[Tensor] | Sequence[Sequence[SpokenTurn]]

# How far before its token's own position the state stands that speaks for the token.
POSITIONS_BEFORE_TOKEN = {"predicting": 1, "original": 0}


def spoken_states(
    hidden: Tensor, spliced: SplicedInputs, target_units: TargetUnits, alignment: CTCAlignment | None
) -> tuple[list[Tensor], list[Tensor]]:
    """States (tokens, C) and units (U,) of every spoken turn, from hidden states (B, T, C).

    With a plain sequence of units a sample, all its labelled tokens are one turn. `alignment` None: "predicting" for
    turns, "original" for plain sequences.
    """
    if len(target_units) != hidden.shape[0]:
        raise ValueError(f"target_units hold {len(target_units)} samples, the batch {hidden.shape[0]}")
    by_turn = _is_by_turn(target_units)
    alignment = alignment or ("predicting" if by_turn else "original")
    if alignment not in POSITIONS_BEFORE_TOKEN:
        raise ValueError(f"ctc_alignment must be 'predicting' or 'original', got {alignment!r}")
    if by_turn:
        turns = _turn_positions(spliced, cast(Sequence[Sequence[SpokenTurn]], target_units))
    else:
        turns = _labelled_positions(spliced, cast(Sequence[Tensor], target_units))
    before = POSITIONS_BEFORE_TOKEN[alignment]
    firsts = spliced.first_positions
    states: list[Tensor] = []
    units: list[Tensor] = []
    for sample, positions, turn_units in turns:
        if positions.numel() and int(positions[0]) - before < firsts[sample]:
            raise ValueError(f"sample {sample} speaks its first position, which no state predicts")
        states.append(hidden[sample, positions.to(hidden.device) - before])
        units.append(turn_units)
    return states, units


def _is_by_turn(target_units: TargetUnits) -> bool:
    """Whether turns are given. Raises ValueError for anything but the three forms of `TargetUnits`."""
    if isinstance(target_units, Tensor):
        if target_units.dim() != 2:
            raise ValueError(f"target_units as a tensor must be (batch, units), got {tuple(target_units.shape)}")
        return False
    if all(isinstance(sample, Tensor) for sample in target_units):
        return False
    for number, sample in enumerate(target_units):
        if not _is_list_of_turns(sample):
            raise ValueError(
                f"target_units must be one tensor of units a sample, or one list of SpokenTurn a sample; sample "
                f"{number} is {_kind(sample)}"
            )
    return True


def _is_list_of_turns(sample: object) -> bool:
    return isinstance(sample, Sequence) and all(isinstance(turn, SpokenTurn) for turn in sample)


def _kind(sample: object) -> str:
    inner = sorted({type(item).__name__ for item in sample}) if isinstance(sample, list | tuple) else []
    return f"a {type(sample).__name__}" + (f" of {', '.join(inner)}" if inner else "")


def _turn_positions(
    spliced: SplicedInputs, target_units: Sequence[Sequence[SpokenTurn]]
) -> Iterator[tuple[int, Tensor, Tensor]]:
    lengths = spliced.lengths.tolist()
    for sample, (turns, first) in enumerate(zip(target_units, spliced.first_positions, strict=True)):
        for turn in turns:
            if not 0 <= turn.start < turn.end <= lengths[sample]:
                raise ValueError(
                    f"sample {sample} has {lengths[sample]} positions; a spoken turn cannot span "
                    f"[{turn.start}, {turn.end})"
                )
            yield sample, torch.arange(first + turn.start, first + turn.end), turn.units


def _labelled_positions(spliced: SplicedInputs, target_units: Sequence[Tensor]) -> Iterator[tuple[int, Tensor, Tensor]]:
    if spliced.labels is None:
        raise ValueError("target_units without SpokenTurns need labels, which say what tokens are spoken")
    for sample, units in enumerate(target_units):
        positions = (spliced.labels[sample] != IGNORED_LABEL).nonzero().flatten()
        yield sample, positions, units[units != IGNORED_LABEL]
