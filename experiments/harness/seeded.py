"""What every experiment with models of its own, trained from scratch under several seeds, answers alike."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Self

from experiments.harness.study import Scale


@dataclass(frozen=True, kw_only=True)
class SeededExperiment:
    """`seed` and the `seed_count - 1` after it, for every arm; nothing pretrained, no arm that starts from another."""

    recipe: str
    scale: Scale
    seed: int
    seed_count: int

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(range(self.seed, self.seed + self.seed_count))

    def seeds_of(self, arm: str) -> tuple[int, ...]:
        return self.seeds

    def starts_from(self, arm: str) -> str | None:
        return None

    def with_seed(self, seed: int) -> Self:
        return dataclasses.replace(self, seed=seed, seed_count=1)

    def with_weights(self, digest: str) -> Self:
        raise ValueError(f"{self.recipe} trains its models from scratch; --weights has nothing to load into")
