"""What experiments that only count are: adapters, and published models, a row each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from experiments.harness.identity import plain_values
from experiments.harness.one_seed import OneSeedExperiment
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
class CountingExperiment(OneSeedExperiment):
    """What both have in common: nothing is drawn, so one seed and every scale give the same numbers."""

    recipe: str
    scale: Scale
    seed: int
    arms: tuple[Any, ...]

    def __post_init__(self) -> None:
        names = self.arm_names
        if not names or len(set(names)) != len(names):
            raise ValueError(f"{self.recipe} needs arms, each with a name of its own; got {names}")

    def with_weights(self, digest: str) -> Self:
        raise ValueError(f"{self.recipe} takes no --weights: it counts, and weights change no count")

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
