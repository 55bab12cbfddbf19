"""Puts speech embeddings where the token ids say -200, and pads samples of different lengths into one batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

SPEECH_TOKEN_ID = -200
IGNORED_LABEL = -100

PaddingSide = Literal["left", "right"]


@dataclass(frozen=True)
class SplicedInputs:
    """What the language model reads. Shapes: B samples, T positions of the longest, C hidden size.

    inputs_embeds (B, T, C), zero at padding; attention_mask (B, T) bool, True = real; labels (B, T) or None, -100 over
    speech and padding.
    """

    inputs_embeds: Tensor
    attention_mask: Tensor
    labels: Tensor | None
    padding_side: PaddingSide

    @property
    def lengths(self) -> Tensor:
        """(B,) real positions of each sample."""
        return self.attention_mask.sum(dim=1)

    @property
    def first_positions(self) -> list[int]:
        """Where each sample's first real position stands in its padded row."""
        if self.padding_side == "right":
            return [0] * self.attention_mask.shape[0]
        width = self.attention_mask.shape[1]
        return [width - length for length in self.lengths.tolist()]


def splice_speech(
    embed: Callable[[Tensor], Tensor],
    input_ids: Tensor,
    speech_features: Sequence[Tensor],
    *,
    vocab_size: int,
    attention_mask: Tensor | None,
    labels: Tensor | None,
    padding_side: PaddingSide,
) -> SplicedInputs:
    """Replaces each -200 of `input_ids` (B, N) by the next of `speech_features` (positions, C), in reading order.

    `attention_mask` (B, N) drops padding tokens, wherever they stand. Raises ValueError where the number of segments
    and the number of -200 differ, and for an id or a label that is neither special nor below `vocab_size`.
    """
    if input_ids.dim() != 2 or input_ids.shape[0] == 0:
        raise ValueError(f"input_ids must be (batch, tokens) with at least one sample, got {tuple(input_ids.shape)}")
    for name, other in (("attention_mask", attention_mask), ("labels", labels)):
        if other is not None and other.shape != input_ids.shape:
            raise ValueError(
                f"{name} has shape {tuple(other.shape)}, input_ids {tuple(input_ids.shape)}; must be equal"
            )
    real = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    is_speech = input_ids == SPEECH_TOKEN_ID
    _check_ids("input_ids", input_ids, real & ~is_speech, vocab_size, f"{SPEECH_TOKEN_ID} for speech")
    if labels is not None:
        labelled = real & ~is_speech & (labels != IGNORED_LABEL)
        _check_ids("labels", labels, labelled, vocab_size, f"{IGNORED_LABEL} for no loss")
    wanted = int((is_speech & real).sum())
    if wanted != len(speech_features):
        raise ValueError(
            f"input_ids hold {wanted} speech tokens ({SPEECH_TOKEN_ID}) but {len(speech_features)} speech segments "
            f"were given; give one segment per speech token, in reading order"
        )
    remaining = list(speech_features)
    rows: list[Tensor] = []
    row_labels: list[Tensor] = []
    for sample, keep in enumerate(real):
        ids = input_ids[sample][keep]
        sample_labels = torch.full_like(ids, IGNORED_LABEL) if labels is None else labels[sample][keep]
        count = int((ids == SPEECH_TOKEN_ID).sum())
        segments, remaining = remaining[:count], remaining[count:]
        row, row_label = _splice_sample(embed, ids, sample_labels, segments)
        rows.append(row)
        row_labels.append(row_label)
    mask = [torch.ones(row.shape[0], dtype=torch.bool, device=row.device) for row in rows]
    return SplicedInputs(
        inputs_embeds=_pad(rows, 0.0, padding_side),
        attention_mask=_pad(mask, False, padding_side),
        labels=None if labels is None else _pad(row_labels, IGNORED_LABEL, padding_side),
        padding_side=padding_side,
    )


def _check_ids(name: str, ids: Tensor, used: Tensor, vocab_size: int, special: str) -> None:
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise ValueError(f"{name} must be whole numbers, got {ids.dtype}")
    wrong = ids[used & ((ids < 0) | (ids >= vocab_size))]
    if wrong.numel():
        raise ValueError(f"{name} must lie in 0 to {vocab_size - 1} ({special}), got {wrong[:4].tolist()}")


def _splice_sample(
    embed: Callable[[Tensor], Tensor], ids: Tensor, labels: Tensor, segments: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    is_speech = ids == SPEECH_TOKEN_ID
    # One look-up for the whole sample; -200 is no row of the table, so its place is looked up as 0 and thrown away.
    text = embed(ids.masked_fill(is_speech, 0))
    if not segments:
        return text, labels
    pieces: list[Tensor] = []
    label_pieces: list[Tensor] = []
    start = 0
    for place, features in zip(is_speech.nonzero().flatten().tolist(), segments, strict=True):
        pieces += [text[start:place], features.to(text.dtype)]
        label_pieces += [labels[start:place], labels.new_full((features.shape[0],), IGNORED_LABEL)]
        start = place + 1
    return torch.cat([*pieces, text[start:]]), torch.cat([*label_pieces, labels[start:]])


def _pad(rows: Sequence[Tensor], value: float | int | bool, side: PaddingSide) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value, padding_side=side)


def whole_attention_mask(
    mask: Tensor | None, past_mask: Tensor | None, batch: int, positions: int, seen: int, device: torch.device
) -> Tensor | None:
    """(B, seen + T) bool over cache and new positions; None where everything is real (lets sdpa go its fast way)."""
    mask_is_full = mask is None or bool(mask.all())
    past_is_full = past_mask is None or bool(past_mask.all())
    if mask_is_full and past_is_full:
        return None
    past = torch.ones(batch, seen, dtype=torch.bool) if past_mask is None else past_mask.bool()
    new = torch.ones(batch, positions, dtype=torch.bool) if mask is None else mask.bool()
    return torch.cat([past.to(device), new.to(device)], dim=1)


def predicted_positions(labels: Tensor, attention_mask: Tensor) -> Tensor:
    """(labelled, 2): sample and position of each label that an earlier real position predicts."""
    wanted = labels != IGNORED_LABEL
    wanted[:, 1:] &= attention_mask[:, :-1]
    wanted[:, :1] = False
    return wanted.nonzero()
