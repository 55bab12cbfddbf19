"""Moshi's published checkpoint format: `config.json` and `model.safetensors`, from and to explicit local folders."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from moshi.models import loaders
from moshi.models.lm import LMModel
from moshi.modules.transformer import StreamingMultiheadAttention
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from backbones.moshi.build import build_lm
from backbones.moshi.config import MoshiConfig, read_config_file
from backbones.moshi.mount import is_mounted, require_lm

CONFIG_FILE = "config.json"
WEIGHTS_KEY = "moshi_name"
MOST_NAMED = 3

Shape = tuple[int, ...]

# Older files hold one matrix for all steps of an attention; the package splits it when it loads them.
_OLDER_NAMES = (
    ("in_proj_weight", "in_projs.{step}.weight"),
    ("in_proj.weight", "in_projs.{step}.weight"),
    ("out_proj.weight", "out_projs.{step}.weight"),
)


def load_lm(
    folder: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    config: MoshiConfig | None = None,
) -> LMModel:
    """A model from a folder in the published format, loaded strictly by the package's own loader, in eval mode.

    The weights are the file that config.json calls `moshi_name`, model.safetensors where it is silent; the hub is
    never asked. config: replaces the folder's, which may then lack one. Mount afterwards, and then `load_ttt`.
    Raises ValueError that names the file, and tensors that are missing, unknown or of another shape.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}; give the one that holds {CONFIG_FILE} and the weights")
    published: Mapping[str, Any] = {}
    if config is None:
        published = read_config_file(folder / CONFIG_FILE)
        config = MoshiConfig.from_published(published, str(folder / CONFIG_FILE))
    weights = folder / str(published.get(WEIGHTS_KEY, loaders.MOSHI_NAME))
    _check_shapes(weights, _shapes_in(weights), config)
    return loaders.get_moshi_lm(weights, config.lm_arguments(), device=device, dtype=dtype)


def write_checkpoint(lm: LMModel, config: MoshiConfig, folder: str | Path) -> None:
    """Write config.json and model.safetensors to `folder` in the published format, under the package's names.

    Each file is written beside its place and moved there when it is whole. Raises ValueError for a mounted model, which
    the format has no names for (`save_ttt` writes what mounting added), and for a config that is not the model's.
    """
    require_lm(lm)
    if is_mounted(lm):
        raise ValueError(
            "the model is mounted, and the published format has no names for TTT: write the checkpoint before "
            "mounting, and the trained difference with save_ttt"
        )
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in lm.state_dict().items()}
    folder = Path(folder)
    _check_shapes(folder, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, config)
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{loaders.MOSHI_NAME}.partial"
    save_file(tensors, partial)
    os.replace(partial, folder / loaders.MOSHI_NAME)
    partial = folder / f"{CONFIG_FILE}.partial"
    content = {WEIGHTS_KEY: loaders.MOSHI_NAME, **config.to_published()}
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, folder / CONFIG_FILE)


def _shapes_in(weights: Path) -> dict[str, Shape]:
    if not weights.is_file():
        raise ValueError(
            f"there is no weights file {weights}; config.json names it as {WEIGHTS_KEY!r}, {loaders.MOSHI_NAME} where "
            "it is silent"
        )
    try:
        with safe_open(weights, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except SafetensorError as error:
        raise ValueError(f"{weights} is no readable safetensors file ({error}); it may be cut short") from error


def _check_shapes(origin: Path, found: Mapping[str, Shape], config: MoshiConfig) -> None:
    """Raise ValueError unless the tensors, under current or older names, are those of a model of this config."""
    lm = build_lm(config, device="meta")
    expected = {name: tuple(tensor.shape) for name, tensor in lm.state_dict().items()}
    found = _under_current_names(found, lm)
    for module, field, wanted in (("emb", "n_q", config.n_q), ("linears", "dep_q", config.dep_q)):
        held = len([name for name in found if re.fullmatch(rf"{module}\.\d+\.weight", name)])
        if held != wanted:
            raise ValueError(f"{origin} holds {held} audio codebooks ({module}.*), the config says {field}={wanted}")
    faults: list[str] = []
    if missing := [name for name in expected if name not in found]:
        faults.append(f"lacks {_named(missing)}")
    if unknown := [name for name in found if name not in expected]:
        faults.append(f"has {_named(unknown)}, which such a model has not")
    if misshaped := [name for name in expected if name in found and found[name] != expected[name]]:
        told = [f"{name} of shape {found[name]} (the config's is {expected[name]})" for name in misshaped[:MOST_NAMED]]
        faults.append(f"has {_named(told, len(misshaped))}")
    if faults:
        raise ValueError(f"{origin} is no checkpoint of this config, or of another version: it {'; it '.join(faults)}")


def _under_current_names(found: Mapping[str, Shape], lm: LMModel) -> dict[str, Shape]:
    shapes = dict(found)
    for prefix, module in lm.named_modules():
        if not isinstance(module, StreamingMultiheadAttention):
            continue
        for older, current in _OLDER_NAMES:
            shape = shapes.pop(f"{prefix}.{older}", None)
            if shape is not None:
                one_step = (shape[0] // module.mult, *shape[1:])
                shapes |= {f"{prefix}.{current.format(step=step)}": one_step for step in range(module.mult)}
    return shapes


def _named(names: list[str], count: int | None = None) -> str:
    """The first few names, and how many there are beyond them."""
    more = (len(names) if count is None else count) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
