"""What this repository has for a model: its adapter, and where TTT mounts. Files are read and never imported."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path

from analysis.cards.schema import Card

ROOT = Path(__file__).parents[2]
BACKBONES = ROOT / "backbones"


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """folder: under `backbones/`. is_loadable: by `load_backbone`."""

    folder: str
    is_loadable: bool


def adapter_of(card: Card, backbones: Path = BACKBONES) -> Adapter | None:
    """A model's adapter; None where it has no folder of code under `backbones/`."""
    folder = backbones / card.adapter
    if not card.adapter or not folder.is_dir():
        return None
    return Adapter(folder=card.adapter, is_loadable=card.name in loadable_names(backbones / "__init__.py"))


def loadable_names(init: Path) -> tuple[str, ...]:
    """Names that `load_backbone` takes: the literal BACKBONES in `backbones/__init__.py`."""
    for node in ast.parse(init.read_text(encoding="utf-8")).body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        if any(isinstance(target, ast.Name) and target.id == "BACKBONES" for target in targets):
            assert isinstance(node, ast.Assign | ast.AnnAssign)
            names = node.value.keys if isinstance(node.value, ast.Dict) else getattr(node.value, "elts", [])
            return tuple(str(name.value) for name in names if isinstance(name, ast.Constant))
    raise ValueError(f"{init} names no BACKBONES; the names that load_backbone takes are read from there")


def mountable_families(backbones: Path = BACKBONES) -> tuple[str, ...]:
    """transformers' families that `mount` opens: the model types of `backbones/mounting/families.py`."""
    families = backbones / "mounting" / "families.py"
    found = re.findall(r'^\s+model_type = "ttt_(\w+)"', families.read_text(encoding="utf-8"), re.MULTILINE)
    if not found:
        raise ValueError(f"{families} has no line 'model_type = \"ttt_...\"'; the families are read from there")
    return tuple(found)


def where_ttt_mounts(card: Card, families: tuple[str, ...]) -> str:
    """In words: the layers that `mount` can open in this model, or why there are none."""
    layers = f"layers 0-{card.decoder.layers - 1}"
    if card.hosts == "moshi":
        return f"{layers} of the temporal transformer (backbones/moshi); never the depth transformer"
    if card.hosts in families:
        return f"{layers} of the language model (backbones/mounting, family {card.hosts})"
    return f"nowhere yet: its language model is of family {card.hosts}, and mount opens {', '.join(families)}"
