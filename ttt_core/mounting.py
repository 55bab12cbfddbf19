"""`mount`: put TTT layers into a model that another package knows how to open."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.metadata import entry_points
from typing import Literal, Protocol

from torch import nn

from ttt_core.config import TTTConfig

HOST_GROUP = "ttt_core.hosts"
MountMode = Literal["replace", "gated"]


class Host(Protocol):
    """A family of models that TTT can be mounted on; packages offer one through the entry-point group."""

    def matches(self, model: nn.Module) -> bool: ...

    def mount(
        self, model: nn.Module, layers: Iterable[int], config: TTTConfig | None = None, mode: MountMode = "replace",
        window: int | Mapping[int, int] | None = None, sinks: int = 0,
    ) -> nn.Module: ...  # fmt: skip


def mount(
    model: nn.Module, layers: Iterable[int], config: TTTConfig | None = None, mode: MountMode = "replace",
    window: int | Mapping[int, int] | None = None, sinks: int = 0,
) -> nn.Module:  # fmt: skip
    """Mount TTT on the given layers of a supported model, in place, and return it.

    config: None derives one from the attention that each layer has. mode: "replace" puts TTT where self-attention
    was; "gated" adds it beside. window, sinks: what the other layers' attention keeps, all of it when None.

    The model's family is found through the entry points of the group `ttt_core.hosts`, so that this package
    imports nothing above it. Raises ValueError when no installed package knows the model.
    """
    hosts = {entry.name: entry.load()() for entry in entry_points(group=HOST_GROUP)}
    for host in hosts.values():
        if host.matches(model):
            return host.mount(model, layers=layers, config=config, mode=mode, window=window, sinks=sinks)
    known = ", ".join(sorted(hosts)) or "none: install this project (pip install -e .)"
    raise ValueError(f"no host can mount TTT on a {type(model).__name__}; hosts installed: {known}")
