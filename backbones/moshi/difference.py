"""The trained difference: what mounting added to Moshi and training made of it, in a file of its own.

Names are those of the model's own state dict ("transformer.layers.24.self_attn.ttt.wq.weight").
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from moshi.models.lm import LMModel
from torch import Tensor

from backbones.moshi.mount import gates, require_lm, ttt_layers
from backbones.mounting.tensor_file import TensorFile, require_shapes

FILE = TensorFile(format="moshi_ttt_difference", version=1, content="trained difference", writer="save_ttt")


def ttt_state_dict(lm: LMModel) -> dict[str, Tensor]:
    """The TTT layers' parameters and the gates of a mounted model, by name; detached, not copied."""
    require_lm(lm)
    layers, alphas = ttt_layers(lm), gates(lm)
    if not layers:
        raise ValueError(
            "the model has no TTT layers: there is no trained difference; call mount(lm, layers=...) first"
        )
    wanted = {id(parameter) for layer in layers.values() for parameter in layer.parameters()}
    wanted |= {id(alpha) for alpha in alphas.values()}
    return {name: parameter.detach() for name, parameter in lm.named_parameters() if id(parameter) in wanted}


def save_ttt(lm: LMModel, path: str | Path) -> None:
    """Write the trained difference (safetensors), with the config it belongs to.

    It belongs to one checkpoint: the projections started from its attention. Keep that one's name beside the file.
    Raises ValueError when the model has no TTT, or the path's folder does not exist.
    """
    FILE.write(path, ttt_state_dict(lm), mounting_identity(lm), facts={})


def load_ttt(lm: LMModel, path: str | Path) -> None:
    """Copy a saved difference into a model mounted the same way; values are cast to the model's dtypes.

    Raises ValueError, with the model as it was, when the file is missing or unreadable, when it was saved from
    another config, layers or mode, or when tensors are missing, extra or of another shape.
    """
    path, wanted = Path(path), ttt_state_dict(lm)
    _, saved = FILE.read(path, mounting_identity(lm))
    require_shapes(path, saved, {name: tuple(tensor.shape) for name, tensor in wanted.items()})
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(saved[name])


def mounting_identity(lm: LMModel) -> dict[str, Any]:
    """What TTT is mounted where, as JSON values. Windows are left out: TTT's weights fit beside any."""
    layers = ttt_layers(lm)
    identity: dict[str, Any] = {
        "backbone": "moshi",
        "hidden_size": lm.dim,
        "layers": list(layers),
        "mode": "gated" if gates(lm) else "replace",
    }
    if layers:
        config = next(iter(layers.values())).config
        identity |= {f"ttt.{name}": value for name, value in config.parameter_identity().items()}
        identity |= {
            "ttt.base_lr": config.resolved_base_lr,
            "ttt.use_gate": config.use_gate,
            "ttt.projection_bias": config.projection_bias,
        }
    return identity
