"""Trained weights of an earlier run into a module, where both have the same model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from experiments.harness.checkpoints import load_weights_strictly, read_checkpoint

LAST_CHECKPOINT = Path("checkpoints") / "last.ckpt"


def start_from(module: torch.nn.Module, folder: Path) -> None:
    """Gives the module the last weights of the arm whose files are in `folder`.

    Adapters (LoRA) that the earlier model had not are left as they are: they add nothing yet.

    Raises:
        ValueError: no checkpoint, a damaged one, or one of other parameters.
    """
    path = folder / LAST_CHECKPOINT
    if not path.is_file():
        raise ValueError(f"{path} is missing: the run that this one starts from left no weights")
    load_weights_strictly(module, with_adapters(read_checkpoint(path)["weights"], module.state_dict()), path)


def with_adapters(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under the names that they have once peft has wrapped their modules, and its new ones beside them."""
    renamed = {name.replace(".base_layer.", "."): name for name in own if ".base_layer." in name}
    found = {renamed.get(name, name) if name not in own else name: tensor for name, tensor in weights.items()}
    return found | {name: tensor for name, tensor in own.items() if "lora_" in name and name not in found}
