"""Which prepared recordings an experiment trains and validates on, and in which pieces."""

from __future__ import annotations

from dataclasses import dataclass

from experiments.recordings.curriculum import Layout


@dataclass(frozen=True, kw_only=True)
class RecordedPlan:
    """A set that `make data` prepared, and how it is read. Nobody knows which facts it tells: no recall is measured.

    name, digest: of the set. hours: of the conversations in it. has_words: whether words of what is learned are known;
        else the text is ends of turns alone, and no loss on it is measured.
    layout: how the backbone counts positions (`recordings.curriculum`). positions: a piece holds at most.
    rows, steps: a step reads a piece for each row, and each goes on from the state that the row's piece before left.
    most_carried_pieces: after so many the state begins anew, in every arm: full attention carries all keys.
    validation_conversations, validation_positions: how many held-out conversations are read, from their beginnings on,
        and how far.
    """

    name: str
    digest: str
    hours: float
    has_words: bool
    layout: Layout
    positions: int
    rows: int
    steps: int
    most_carried_pieces: int
    validation_conversations: int
    validation_positions: int

    def __post_init__(self) -> None:
        counted = ("positions", "rows", "steps", "most_carried_pieces", "validation_conversations")
        for field in (*counted, "validation_positions"):
            if getattr(self, field) < 1:
                raise ValueError(f"RecordedPlan.{field} must be at least 1, got {getattr(self, field)}")

    @property
    def chance_recall(self) -> None:
        """No facts, no guessing."""
        return None
