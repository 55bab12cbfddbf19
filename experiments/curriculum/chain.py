"""Several spoken experiments of one arm each as one experiment, in which one may start from another's end."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Self

from experiments.harness.study import Scale
from experiments.spoken.configuration import SpokenExperiment


@dataclass(frozen=True, kw_only=True)
class Link:
    """One arm of a chain. experiment: of one arm. starts_from: name of the link whose trained weights it begins with.

    survives_divergence: that it diverges is a result, which is logged, and the run finishes.
    """

    name: str
    experiment: SpokenExperiment
    starts_from: str | None = None
    survives_divergence: bool = False

    def __post_init__(self) -> None:
        if len(self.experiment.arms) != 1:
            raise ValueError(f"link {self.name!r} trains one arm, and its experiment has {self.experiment.arm_names}")


@dataclass(frozen=True, kw_only=True)
class ChainExperiment:
    """Links are arms to the harness. All of them are of one backbone, scale and seed."""

    recipe: str
    scale: Scale
    seed: int
    seed_count: int = 1
    links: tuple[Link, ...]

    def __post_init__(self) -> None:
        if len(set(self.arm_names)) != len(self.links) or not self.links:
            raise ValueError(f"{self.recipe} needs links with different names, got {self.arm_names}")
        for place, link in enumerate(self.links):
            earlier = self.arm_names[:place]
            if link.starts_from is not None and link.starts_from not in earlier:
                raise ValueError(f"link {link.name!r} starts from {link.starts_from!r}, which is not among {earlier}")
            if (link.experiment.backbone, link.experiment.scale) != (self.backbone, self.scale):
                raise ValueError(f"link {link.name!r} is of another backbone or scale than the first")

    @property
    def backbone(self) -> str:
        return self.links[0].experiment.backbone

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(range(self.seed, self.seed + self.seed_count))

    def seeds_of(self, arm: str) -> tuple[int, ...]:
        return self.seeds

    @property
    def arm_names(self) -> tuple[str, ...]:
        return tuple(link.name for link in self.links)

    def starts_from(self, arm: str) -> str | None:
        return self.link(arm).starts_from

    def with_seed(self, seed: int) -> Self:
        return self._with_experiments(lambda experiment: experiment.with_seed(seed), seed=seed, seed_count=1)

    def with_weights(self, digest: str) -> Self:
        return self._with_experiments(lambda experiment: experiment.with_weights(digest))

    def link(self, name: str) -> Link:
        """The link called `name`.

        Raises:
            ValueError: there is none; the message lists those there are.
        """
        for link in self.links:
            if link.name == name:
                return link
        raise ValueError(f"{self.recipe} has no arm {name!r}; it has {', '.join(self.arm_names)}")

    def of_arm(self, name: str) -> dict[str, Any]:
        """What a run of the link's own recipe would log, and which link it starts from."""
        link = self.link(name)
        own = link.experiment.of_arm(link.experiment.arm_names[0])
        return own | {"recipe": self.recipe, "starts_from": link.starts_from}

    def _with_experiments(self, change: Any, **fields: Any) -> Self:
        links = tuple(dataclasses.replace(link, experiment=change(link.experiment)) for link in self.links)
        return dataclasses.replace(self, links=links, **fields)
