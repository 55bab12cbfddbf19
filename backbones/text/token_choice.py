"""How the next text token is chosen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class TokenChoice:
    """How the next text token is chosen: greedily at temperature 0, else sampled from the top_p nucleus."""

    temperature: float = 0.0
    top_p: float = 1.0
    min_new_tokens: int = 0
    end_token_ids: tuple[int, ...] = ()
    random: torch.Generator | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature must be 0 (greedy) or more and finite, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], got {self.top_p}")

    def choose(self, logits: Tensor, step: int) -> Tensor:
        """(B, V) logits -> (B,) token ids. Raises ValueError where a row has NaN or nothing to choose from."""
        logits = logits.float()
        unusable = logits.isnan().any(dim=1) | ~logits.isfinite().any(dim=1)
        if bool(unusable.any()):
            raise ValueError(
                f"token {step} of sample {unusable.nonzero().flatten().tolist()} cannot be chosen: its logits hold NaN "
                f"or no finite number; the weights are damaged, or too large for their dtype"
            )
        if step < self.min_new_tokens and self.end_token_ids:
            logits = logits.index_fill(1, torch.tensor(self.end_token_ids, device=logits.device), -torch.inf)
        if self.temperature == 0:
            return logits.argmax(dim=-1)
        probabilities = torch.softmax(logits / self.temperature, dim=-1)
        if self.top_p < 1:
            ordered, order = probabilities.sort(dim=-1, descending=True)
            # A token stays while the mass before it is below top_p: the most likely one always does.
            outside = ordered.cumsum(dim=-1) - ordered >= self.top_p
            probabilities = torch.zeros_like(probabilities).scatter(1, order, ordered.masked_fill(outside, 0.0))
        return torch.multinomial(probabilities, 1, generator=self.random).flatten()


def random_source(seed: int | None, random: torch.Generator | None, device: torch.device) -> torch.Generator | None:
    if seed is not None and random is not None:
        raise ValueError("give a seed or a torch.Generator, not both")
    return random if seed is None else torch.Generator(device).manual_seed(seed)


def checked_token_ids(name: str, given: object, vocab_size: int) -> tuple[int, ...]:
    """The ids as a tuple. Raises ValueError unless each is a whole number within the vocabulary."""
    ids: list[int] = []
    for token in given if isinstance(given, Sequence) else [given]:
        if type(token) is not int or not 0 <= token < vocab_size:
            raise ValueError(f"{name} must be token ids from 0 to {vocab_size - 1}, got {given!r}")
        ids.append(token)
    return tuple(ids)


def padding_token_id(given: int | None, configured: int | None, ends: tuple[int, ...]) -> int:
    for candidate in (given, configured, *ends[:1]):
        if candidate is not None:
            return candidate
    return 0
