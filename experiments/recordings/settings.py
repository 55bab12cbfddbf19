"""How recordings are prepared: everything that changes a byte of what is made of them, and nothing else."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

FORMAT_VERSION = 1
"""Raised whenever the same settings would give other data: older sets are then refused, never misread."""

_AFTER_THE_SHARDS = ("validation_share", "unit_vocab_size", "unit_fit_s", "text_vocab_size")

ChannelUse = Literal["auto", "mix", "speakers"]


@dataclass(frozen=True, kw_only=True)
class PreparationSettings:
    """Identity of a prepared set, beside its source.

    channels: what two channels are. "speakers": two people, the first heard (user), the second learned (assistant).
        "mix": one sound, averaged. "auto": speakers where the channels differ and seldom speak at once. More than two
        are always averaged.
    voice_strictness: of WebRTC's detector, 0 (much counts as speech) to 3 (little does).
    pause_s: silence that ends a stretch of speech. least_speech_s: shorter stretches are noise. margin_s: kept on both
        sides of a stretch.
    longest_turn_s: no turn is longer; a longer one is divided at its longest pause. monologue_turn_s: where one person
        speaks alone, stretches are joined up to here, and the turns are heard and learned by turns.
    conversation_pause_s: silence that ends a conversation.
    assistant_speaker: whose turns are learned where a transcript names speakers; None: who speaks the longest.
    spreads_untimed_text: deal a transcript without times out over the turns, sentence by sentence, by their share of
        the speech. What is said and what is written then agree only within seconds; else such a text is left aside.
    validation_share: of the recordings, drawn by their names; at least one where there are several.
    n_mels: 80 or 128. unit_vocab_size: k-means clusters, fitted on `unit_fit_s` seconds of turns spread over all.
    text_vocab_size: upper bound of the text vocabulary, special tokens and 256 bytes included.
    """

    channels: ChannelUse = "auto"
    voice_strictness: int = 2
    pause_s: float = 0.5
    least_speech_s: float = 0.2
    margin_s: float = 0.1
    longest_turn_s: float = 30.0
    monologue_turn_s: float = 12.0
    conversation_pause_s: float = 30.0
    assistant_speaker: str | None = None
    spreads_untimed_text: bool = False
    validation_share: float = 0.1
    n_mels: int = 80
    unit_vocab_size: int = 200
    unit_fit_s: float = 1200.0
    text_vocab_size: int = 1024

    def __post_init__(self) -> None:
        if self.channels not in ("auto", "mix", "speakers"):
            raise ValueError(f"channels is {self.channels!r}; it must be 'auto', 'mix' or 'speakers'")
        if self.n_mels not in (80, 128):
            raise ValueError(f"n_mels is {self.n_mels}; whisper bundles filters for 80 and 128")
        for name, low, high in (
            ("voice_strictness", 0, 3),
            ("unit_vocab_size", 2, 1 << 15),
            ("text_vocab_size", 320, 1 << 16),
            ("pause_s", 0.1, 5.0),
            ("least_speech_s", 0.03, 5.0),
            ("margin_s", 0.0, 1.0),
            ("longest_turn_s", 2.0, 300.0),
            ("monologue_turn_s", 1.0, 300.0),
            ("conversation_pause_s", 1.0, 3600.0),
            ("validation_share", 0.0, 0.9),
            ("unit_fit_s", 1.0, 36000.0),
        ):
            given = getattr(self, name)
            fits = isinstance(given, int if isinstance(low, int) else int | float) and not isinstance(given, bool)
            if not fits or not low <= given <= high:
                kind = "a whole number" if isinstance(low, int) else "a number"
                raise ValueError(f"{name} is {given!r}; it must be {kind} of {low} to {high}")
        if self.monologue_turn_s > self.longest_turn_s:
            raise ValueError(
                f"monologue_turn_s is {self.monologue_turn_s}, above longest_turn_s, {self.longest_turn_s}; lower it"
            )
        if 2 * self.margin_s > self.pause_s:
            raise ValueError(
                f"margin_s is {self.margin_s}: the margins of two stretches would overlap in a pause of pause_s, "
                f"{self.pause_s}; give at most half of it"
            )

    def as_dict(self) -> dict[str, Any]:
        return {"format_version": FORMAT_VERSION, **asdict(self)}

    def digest(self) -> str:
        """16 hex digits over every field."""
        return _digest(self.as_dict())

    def shard_digest(self) -> str:
        """The same over what decides the shards alone: other units or another vocabulary need no new ones."""
        return _digest({name: value for name, value in self.as_dict().items() if name not in _AFTER_THE_SHARDS})


def _digest(fields: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]
