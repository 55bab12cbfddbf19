"""The trained difference: what mounting added to a backbone and training made of it, in a file of its own.

Names are those below the decoder ("layers.24.self_attn.ttt.wq.weight"), whether it is bare or in a language model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from backbones.mounting.config import read_ttt_config
from backbones.mounting.host import gates, mounted_decoder, ttt_layers
from backbones.mounting.tensor_file import TensorFile, require_shapes

FILE = TensorFile(format="ttt_difference", version=1, content="trained difference", writer="save_ttt")


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
    Raises ValueError when the model has no TTT, or the path's folder does not exist.
    """
    FILE.write(path, ttt_state_dict(model), _identity(model), facts={})


def load_ttt(model: nn.Module, path: str | Path) -> None:
    """Copy a saved difference into a model mounted the same way; values are cast to the model's dtypes.

    Raises ValueError, with the model as it was, when the file is missing or unreadable, when it was saved from
    another config, layers or mode, or when tensors are missing, extra or of another shape.
    """
    path, wanted = Path(path), ttt_state_dict(model)
    _, saved = FILE.read(path, _identity(model))
    require_shapes(path, saved, {name: tuple(tensor.shape) for name, tensor in wanted.items()})
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
        **{f"ttt.{name}": value for name, value in ttt.parameter_identity().items()},
        "ttt.base_lr": ttt.resolved_base_lr,
        "ttt.use_gate": ttt.use_gate,
        "ttt.projection_bias": ttt.projection_bias,
    }
