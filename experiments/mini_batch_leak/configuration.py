"""What a mini-batch-leak experiment is: TTT layers, each trained in two forms."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from experiments.data.spec import ConversationSpec
from experiments.harness.counted_module import OptimiserPlan
from experiments.harness.identity import plain_values
from experiments.harness.study import Scale
from ttt_core import TTTConfig

Form = Literal["causal", "leaky"]
FORMS: tuple[Form, ...] = ("causal", "leaky")
"""How a model is trained. No field holds it: every layer of the experiment is trained in both forms."""


@dataclass(frozen=True, kw_only=True)
class TextModel:
    """A Llama: windowed attention in all layers but the top one, whose attention TTT replaces.

    window: positions that attention sees, short so that TTT has something to add.
    """

    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_layers: int
    window: int

    def __post_init__(self) -> None:
        if self.num_layers < 2:
            raise ValueError(f"TextModel.num_layers must be 2 or more, attention and TTT on top; got {self.num_layers}")


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One kind of TTT layer, trained causal (arm `NAME-causal`) and leaky (`NAME-leaky`)."""

    name: str
    ttt: TTTConfig


@dataclass(frozen=True, kw_only=True)
class TextTraining(OptimiserPlan):
    """rows_per_step: conversations in a batch, drawn anew for each step."""

    steps: int
    rows_per_step: int
    validate_every_steps: int

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("steps", "rows_per_step", "validate_every_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"TextTraining.{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class WritingPlan:
    """What a trained model writes: of each of the first `rows` held-out conversations, `prompt_tokens` are read and
    `written_tokens` drawn, at `temperature`."""

    rows: int
    prompt_tokens: int
    written_tokens: int
    temperature: float

    def __post_init__(self) -> None:
        for name in ("rows", "prompt_tokens", "written_tokens", "temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(f"WritingPlan.{name} must be above 0, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class MiniBatchLeakExperiment:
    """Layers x forms x seeds. All arms of a seed read the same batches and share every weight that is not TTT's own.

    text: the conversations, of which only the text is used; `positions` are tokens of one row.
    """

    recipe: str
    scale: Scale
    seed: int
    seed_count: int
    text: ConversationSpec
    model: TextModel
    training: TextTraining
    layers: tuple[Layer, ...]
    writing: WritingPlan

    def __post_init__(self) -> None:
        names = [layer.name for layer in self.layers]
        if len(set(names)) != len(names):
            raise ValueError(f"layers need different names, got {names}")
        for layer in self.layers:
            if layer.ttt.mini_batch_size > self.text.positions:
                raise ValueError(
                    f"layer {layer.name!r} has mini-batches of {layer.ttt.mini_batch_size}, and the text is cut into "
                    f"rows of {self.text.positions} tokens, which fill none: give longer rows or smaller mini-batches"
                )
        if self.writing.rows > self.text.validation_conversations:
            raise ValueError(
                f"writing.rows is {self.writing.rows}, and there are {self.text.validation_conversations} held-out "
                "conversations to take prompts from"
            )
        if self.writing.prompt_tokens >= self.text.positions:
            raise ValueError(
                f"writing.prompt_tokens is {self.writing.prompt_tokens}; it must be below the {self.text.positions} "
                "tokens of a row"
            )

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(range(self.seed, self.seed + self.seed_count))

    def seeds_of(self, arm: str) -> tuple[int, ...]:
        return self.seeds

    @property
    def arm_names(self) -> tuple[str, ...]:
        return tuple(arm_name(layer, form) for layer in self.layers for form in FORMS)

    def starts_from(self, arm: str) -> str | None:
        return None

    def with_seed(self, seed: int) -> MiniBatchLeakExperiment:
        return dataclasses.replace(self, seed=seed, seed_count=1)

    def with_weights(self, digest: str) -> MiniBatchLeakExperiment:
        raise ValueError(f"{self.recipe} trains its models from scratch; --weights has nothing to load into")

    def arm_named(self, name: str) -> tuple[Layer, Form]:
        """What is trained in the arm called `name`, and how. Raises ValueError, with those there are, for no arm."""
        for layer in self.layers:
            for form in FORMS:
                if name == arm_name(layer, form):
                    return layer, form
        raise ValueError(f"{self.recipe} has no arm {name!r}; it has {', '.join(self.arm_names)}")

    def of_arm(self, name: str) -> dict[str, Any]:
        """What one arm's result depends on."""
        layer, form = self.arm_named(name)
        return {
            "recipe": self.recipe,
            "scale": self.scale,
            "seed": self.seed,
            "text": plain_values(self.text),
            "model": plain_values(self.model),
            "training": plain_values(self.training),
            "writing": plain_values(self.writing),
            "arm": plain_values(layer) | {"trained": form},
        }


def arm_name(layer: Layer, form: Form) -> str:
    return f"{layer.name}-{form}"
