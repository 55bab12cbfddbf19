"""The trained difference: what mounting added to a backbone and training made of it, in a file of its own.

Names are those below the decoder ("layers.24.self_attn.ttt.wq.weight"), whether it is bare or in a language model.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from backbones.mounting.config import read_ttt_config
from backbones.mounting.host import gates, mounted_decoder, ttt_layers

FORMAT = "ttt_difference"
VERSION = 1


def ttt_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The TTT layers' parameters and the gates of a mounted model, by name; detached, not copied."""
    decoder = mounted_decoder(model)
    prefixes = tuple(f"layers.{index}.self_attn.ttt." for index in ttt_layers(model))
    alphas = {f"layers.{index}.self_attn.alpha" for index in gates(model)}
    if not prefixes:
        raise ValueError("the model has windows and no TTT layers: there is no trained difference to take")
    return {
        name: tensor.detach()
        for name, tensor in decoder.state_dict().items()
        if name.startswith(prefixes) or name in alphas
    }


def save_ttt(model: nn.Module, path: str | Path) -> None:
    """Write the trained difference (safetensors), with the config it belongs to.

    It belongs to one backbone: the projections started from its attention. Keep that backbone's name beside the file.
    """
    tensors = {name: tensor.cpu().contiguous() for name, tensor in ttt_state_dict(model).items()}
    metadata = {"format": FORMAT, "version": str(VERSION), "config": json.dumps(_identity(model), sort_keys=True)}
    save_file(tensors, path, metadata=metadata)


def load_ttt(model: nn.Module, path: str | Path) -> None:
    """Copy a saved difference into a model mounted the same way; values are cast to the model's dtypes.

    Raises ValueError, with the model as it was, when the file is missing or unreadable, when it was saved from
    another config, layers or mode, or when tensors are missing, extra or of another shape.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no file {path}; write one with save_ttt")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            saved = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except SafetensorError as error:
        raise ValueError(f"{path} is no readable safetensors file ({error})") from error
    _require_same_identity(path, metadata, _identity(model))
    wanted = ttt_state_dict(model)
    faults = []
    if missing := sorted(set(wanted) - set(saved)):
        faults.append(f"lacks {', '.join(missing)}")
    if extra := sorted(set(saved) - set(wanted)):
        faults.append(f"has {', '.join(extra)}, which the model has not")
    faults += [
        f"has {name} of shape {tuple(saved[name].shape)}, the model's is {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in saved and saved[name].shape != tensor.shape
    ]
    if faults:
        raise ValueError(f"{path} {'; '.join(faults)}")
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(saved[name])


def _identity(model: nn.Module) -> dict[str, Any]:
    config = mounted_decoder(model).config
    ttt = read_ttt_config(config)
    return {
        "backbone": config.model_type.removeprefix("ttt_"),
        "hidden_size": config.hidden_size,
        "layers": list(config.ttt_layers),
        "mode": config.ttt_mode,
        **{f"ttt.{name}": value for name, value in ttt.state_identity().items()},
        "ttt.base_lr": ttt.resolved_base_lr,
        "ttt.use_gate": ttt.use_gate,
        "ttt.projection_bias": ttt.projection_bias,
    }


def _require_same_identity(path: Path, metadata: dict[str, str], wanted: dict[str, Any]) -> None:
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} holds no trained difference (format {metadata.get('format')!r}, expected {FORMAT!r})")
    if metadata.get("version") != str(VERSION):
        raise ValueError(f"{path} has version {metadata.get('version')}; this code reads version {VERSION}")
    saved = json.loads(metadata["config"])
    differing = [
        f"{name} is {saved.get(name)!r} there and {value!r} here"
        for name, value in wanted.items()
        if saved.get(name) != value
    ]
    if differing:
        raise ValueError(f"{path} was saved from another model: {'; '.join(differing)}")
