"""What experiments that only count are: adapters, and published models, a row each."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Self

from experiments.harness.identity import plain_values
from experiments.harness.study import Scale


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """One arm of adapter-size. folder: the backbone's own, under `backbones/`.

    mounted_from: the folder whose files put TTT into its language model; `folder` again where that does it itself.
    sources_digest: of the counted files, so that a resumed run never mixes two states of the code.
    """

    name: str
    folder: str
    mounted_from: str
    sources_digest: str


@dataclass(frozen=True, kw_only=True)
class PublishedModel:
    """One arm of model-cards. card: its file in `backbones/published`, and the digest of that file's content."""

    name: str
    card: str
    card_digest: str


@dataclass(frozen=True, kw_only=True)
class CountingExperiment:
    """What both have in common: nothing is drawn, so one seed and every scale give the same numbers."""

    recipe: str
    scale: Scale
    seed: int
    arms: tuple[Any, ...]

    def __post_init__(self) -> None:
        names = self.arm_names
        if not names or len(set(names)) != len(names):
            raise ValueError(f"{self.recipe} needs arms, each with a name of its own; got {names}")

    @property
    def seeds(self) -> tuple[int, ...]:
        return (self.seed,)

    def seeds_of(self, arm: str) -> tuple[int, ...]:
        return self.seeds

    @property
    def arm_names(self) -> tuple[str, ...]:
        return tuple(arm.name for arm in self.arms)

    def starts_from(self, arm: str) -> str | None:
        return None

    def with_seed(self, seed: int) -> Self:
        return dataclasses.replace(self, seed=seed)

    def with_weights(self, digest: str) -> Self:
        raise ValueError(f"{self.recipe} takes no --weights: it counts, and weights change no count")

    def arm(self, name: str) -> Any:
        """The row called `name`. Raises ValueError with the names there are."""
        for arm in self.arms:
            if arm.name == name:
                return arm
        raise ValueError(f"{self.recipe} has no arm {name!r}; it has {', '.join(self.arm_names)}")

    def of_arm(self, name: str) -> dict[str, Any]:
        """Everything one arm's result depends on, as plain values: other arms are left out."""
        plain = plain_values(self)
        del plain["arms"]
        return plain | {"arm": plain_values(self.arm(name))}


@dataclass(frozen=True, kw_only=True)
class AdapterSizeExperiment(CountingExperiment):
    """adapter-size: lines and files of adapters."""

    arms: tuple[Adapter, ...]


@dataclass(frozen=True, kw_only=True)
class ModelCardsExperiment(CountingExperiment):
    """model-cards: published models, built without weights and counted."""

    arms: tuple[PublishedModel, ...]
