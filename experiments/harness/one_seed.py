"""What experiments of one seed answer alike, whose arms are the rows of one tuple."""

from __future__ import annotations

import dataclasses
from typing import Any, Self


class OneSeedExperiment:
    """For frozen dataclasses with the fields `recipe`, `seed` and `arms`, rows with a `name`.

    A child gives `of_arm` and `with_weights`, narrows what `arm` gives, and overrides what is different in it.
    """

    recipe: str
    seed: int
    arms: tuple[Any, ...]

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
        return dataclasses.replace(self, seed=seed)  # type: ignore[type-var]  # children are dataclasses

    def arm(self, name: str) -> Any:
        """The row called `name`. Raises ValueError, with those there are, when there is none."""
        for arm in self.arms:
            if arm.name == name:
                return arm
        raise ValueError(f"{self.recipe} has no arm {name!r}; it has {', '.join(self.arm_names)}")
