"""Which parameters are trained from which step on, and at which rate: groups of an optimiser, thawed one by one."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

ALL_TTT, ALL_OTHERS, UPPER_MIXERS = "ttt", "others", "upper_mixers"
RATE_OF_GROUP = "train/learning_rate_of_"


@dataclass(frozen=True, kw_only=True)
class ParameterGroup:
    """Parameters that are trained alike. A parameter belongs to the first group that holds it; in none, it is frozen.

    holds: a part that the module names (`CountedModule.named_parts`: "ttt", and on spoken conversations
        "upper_mixers"), "others" for every parameter, or a piece of parameters' names, such as "lora_".
    learning_rate: its peak. from_step: counted from 0; before it the group is frozen, and costs no gradients.
    """

    name: str
    holds: str
    learning_rate: float
    from_step: int = 0

    def __post_init__(self) -> None:
        if not self.holds:
            raise ValueError(f"group {self.name!r} holds nothing; give 'ttt', 'others' or a piece of names")
        if not self.learning_rate > 0:
            raise ValueError(f"group {self.name!r}: learning_rate must be above 0, got {self.learning_rate}")
        if self.from_step < 0:
            raise ValueError(f"group {self.name!r}: from_step is counted from 0, got {self.from_step}")


def require_usable(groups: Sequence[ParameterGroup]) -> None:
    """Raises ValueError for groups of one name, and where nothing is trained at first."""
    names = [group.name for group in groups]
    if len(set(names)) != len(names):
        raise ValueError(f"groups need different names, got {names}")
    if groups and min(group.from_step for group in groups) > 0:
        raise ValueError("no group is trained from step 0 on: set from_step=0 for the one that comes first")


class GroupedParameters:
    """The trained parameters of a module by group; every one of them, frozen for now or not."""

    def __init__(
        self, module: nn.Module, groups: Sequence[ParameterGroup], parts: Mapping[str, Iterable[nn.Module]]
    ) -> None:
        """Freezes what requires gradients now and is in no group. parts: modules by the names that groups hold.

        Raises:
            ValueError: a group without a parameter: a misspelt name would freeze what it was meant to train.
        """
        ids = {name: {id(p) for part in modules for p in part.parameters()} for name, modules in parts.items()}
        self.groups = tuple(groups)
        self.members: dict[str, list[nn.Parameter]] = {group.name: [] for group in groups}
        trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        for name, parameter in trained:
            group = next((g for g in groups if _holds(g, name, id(parameter), ids)), None)
            if group is None:
                parameter.requires_grad_(False)
            else:
                self.members[group.name].append(parameter)
        empty = [group for group in groups if not self.members[group.name]]
        if empty:
            known = sorted({name.split(".")[1 if name.startswith("model.") else 0] for name, _ in trained})
            raise ValueError(
                f"group {empty[0].name!r} holds no trained parameter: none is of {empty[0].holds!r} and in no group "
                f"before it. Parts of the model: {', '.join(known)}"
            )

    def thaw(self, step: int) -> None:
        """Lets the groups that are trained in the step, counted from 0, require gradients, and no others."""
        for group in self.groups:
            for parameter in self.members[group.name]:
                parameter.requires_grad_(step >= group.from_step)

    def rows(self, weight_decay: float, undecayed: Collection[int]) -> list[dict[str, Any]]:
        """What AdamW takes: two rows a group, with and without weight decay (vectors, and ids in `undecayed`)."""
        found = []
        for group in self.groups:
            for decays in (True, False):
                own = [p for p in self.members[group.name] if (p.dim() > 1 and id(p) not in undecayed) == decays]
                row = {
                    "params": own, "lr": group.learning_rate, "peak_lr": group.learning_rate,
                    "weight_decay": weight_decay if decays else 0.0, "from_step": group.from_step, "group": group.name,
                }  # fmt: skip
                found += [row] if own else []
        return found

    def learning_rates(self, rows: Iterable[Mapping[str, Any]], step: int) -> dict[str, float]:
        """What is logged: the rate of every group in a step, 0 while it is frozen."""
        return {f"{RATE_OF_GROUP}{row['group']}": float(row["lr"]) * (step >= row["from_step"]) for row in rows}


def _holds(group: ParameterGroup, name: str, identity: int, parts: Mapping[str, set[int]]) -> bool:
    if group.holds in parts:
        return identity in parts[group.holds]
    return group.holds == ALL_OTHERS or group.holds in name
