"""Names of everything that is logged. The part before the last slash is the section of MLflow's charts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

TRAIN_LOSS = "train/loss"
TRAIN_TEXT_LOSS = "train/text_loss_nats_per_token"
TRAIN_CTC_LOSS = "train/ctc_loss_nats_per_unit"
TRAIN_GRADIENT_NORM = "train/gradient_norm"
TRAIN_LEARNING_RATE = "train/learning_rate"

VALIDATION_LOSS = "validation/loss"
VALIDATION_TEXT_LOSS = "validation/text_loss_nats_per_token"
VALIDATION_WORD_LOSS = "validation/word_loss_nats"
VALIDATION_PERPLEXITY = "validation/text_perplexity"
VALIDATION_CTC_LOSS = "validation/ctc_loss_nats_per_unit"

LOSS_BY_POSITION = "loss_by_position"
EXCESS_LOSS_BY_POSITION = "excess_loss_by_position"
LEGAL_WORDS_BY_POSITION = "legal_words_by_position"
NEAR_RECALL_BY_POSITION = "near_recall_by_position"
RECALL_BY_DISTANCE = "recall_by_distance"
VALUE_LOSS_BY_DISTANCE = "fact_value_loss_by_distance"
FACTS_BY_DISTANCE = "facts_by_distance"
RECALL_ALL = "recall/all_distances"
RECALL_CHANCE = "recall/chance"
RECALL_VALUE_LOSS = "recall/fact_value_loss_nats"

STREAMED_AGAINST_BATCHED = "agreement/streamed_against_batched_relative_difference"

SPEED = "speed/positions_per_second"
SECONDS_PER_STEP = "speed/seconds_per_step"
PEAK_BYTES = "memory/peak_bytes"
PEAK_BYTES_ABOVE_START = "memory/peak_bytes_above_start"
STATE_BYTES = "memory/state_bytes_per_conversation"
STATE_BYTES_FIXED = "memory/state_bytes_fixed"
STATE_BYTES_PER_POSITION = "memory/state_bytes_per_position"
TRAINED_PARAMETERS = "memory/trained_parameters"


def buckets(edges: Sequence[int]) -> list[tuple[int, int]]:
    """(first, end) of each bucket between rising edges; a bucket holds first <= n < end."""
    return list(pairwise(edges))


def bucket_name(section: str, first: int, end: int) -> str:
    """`loss_by_position/00256_01024`: zero-padded, so that names sort as numbers do."""
    return f"{section}/{first:05d}_{end:05d}"


def bucket_label(first: int, end: int) -> str:
    """`256-1k` for a heading or an axis."""
    return f"{_short(first)}-{_short(end)}"


def _short(number: int) -> str:
    return f"{number // 1024}k" if number >= 1024 and number % 1024 == 0 else str(number)
