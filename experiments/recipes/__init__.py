"""Every recipe by its name on the command line. A recipe gives a complete configuration for a scale and a seed."""

from __future__ import annotations

import inspect
from typing import Protocol

from experiments.harness.configuration import ExperimentConfig, Scale
from experiments.recipes.llama_omni_stage1 import llama_omni_stage1


class Recipe(Protocol):
    """A complete configuration for a scale and a seed."""

    def __call__(self, *, scale: Scale, seed: int) -> ExperimentConfig: ...


RECIPES: dict[str, Recipe] = {"llama-omni-stage1": llama_omni_stage1}


def help_line(name: str) -> str:
    """First line of the recipe's file: what it asks."""
    module = inspect.getmodule(RECIPES[name])
    assert module is not None and module.__doc__ is not None
    return module.__doc__.splitlines()[0]
