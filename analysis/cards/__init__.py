"""Model cards: what is known of each backbone, where it comes from, and what follows by computation."""

from analysis.cards.schema import UNKNOWN, Card, Fact, read_cards

__all__ = ["UNKNOWN", "Card", "Fact", "read_cards"]
