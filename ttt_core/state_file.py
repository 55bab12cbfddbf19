"""A saved state: tensors in a safetensors file whose metadata says what kind of layer they belong to."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from ttt_core.config import TTTConfig
from ttt_core.precision import POLICIES

FORMAT = "ttt_state"
VERSION = 2
# Version 1 knew neither precision policies nor a velocity: its states are FP32 (or FP64) without one.
READABLE_VERSIONS = ("1", "2")


def write_state_file(path: Path, tensors: dict[str, Tensor], config: TTTConfig) -> None:
    """Write a state's tensors by name; ValueError where the folder does not exist."""
    from safetensors.torch import save_file

    if not path.parent.is_dir():
        raise ValueError(f"cannot save a state to {path}: its folder does not exist; make it first")
    metadata = {"format": FORMAT, "version": str(VERSION), "config": json.dumps(config.state_identity())}
    save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, path, metadata)


def read_state_file(path: Path, config: TTTConfig) -> dict[str, Tensor]:
    """The tensors of a state that a layer of this config can continue, by name, on the CPU.

    Raises ValueError when the file is missing, no TTT state, of another version, damaged, or of another config.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ValueError(f"there is no state file {path}; save one with TTTState.save")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except SafetensorError as error:
        raise ValueError(
            f"{path} is no readable safetensors file ({error}); it may be cut short: save it again"
        ) from error
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} holds no TTT state (its format is {metadata.get('format')!r}, expected {FORMAT!r})")
    if metadata.get("version") not in READABLE_VERSIONS:
        raise ValueError(
            f"{path} has state version {metadata.get('version')}; this code reads {' and '.join(READABLE_VERSIONS)}"
        )
    difference = config.state_difference(json.loads(metadata.get("config", "{}")))
    if difference:
        raise ValueError(f"{path} was saved by a layer of another config: {'; '.join(difference)}")
    _require_tensors(path, tensors, config)
    return tensors


def _require_tensors(path: Path, tensors: dict[str, Tensor], config: TTTConfig) -> None:
    rows = tensors["count"].numel() if "count" in tensors else 0
    working = tensors["sums.W1"].dtype if "sums.W1" in tensors else torch.float32
    expected = _expected_shapes(config, rows, working)
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != expected:
        wrong = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
        told = "; ".join(
            f"{name} is {found.get(name, 'missing')}, expected {expected.get(name, 'none')}" for name in wrong
        )
        raise ValueError(f"{path} is damaged: {told}. Save it again")
    stored = POLICIES[config.precision].stored_as((), working)[1]
    wrong = [n for n, t in tensors.items() if n.startswith(("weights.", "velocity.")) and t.dtype != stored]
    if wrong:
        told = "; ".join(f"{name} is {tensors[name].dtype}, expected {stored}" for name in wrong)
        raise ValueError(f"{path} is damaged: {told} under precision {config.precision!r}. Save it again")


def _expected_shapes(config: TTTConfig, rows: int, working: torch.dtype) -> dict[str, tuple[int, ...]]:
    heads, policy = config.num_heads, POLICIES[config.precision]
    inner: dict[str, tuple[int, ...]] = {}
    for index, (wide, narrow) in enumerate(pairwise(config.inner_widths), start=1):
        inner |= {f"W{index}": (heads, wide, narrow), f"b{index}": (heads, 1, narrow)}
    shapes: dict[str, tuple[int, ...]] = {"count": (rows,)}
    for name, shape in inner.items():
        stored, _ = policy.stored_as((rows, *shape), working)
        shapes |= {f"weights.{name}": stored, f"sums.{name}": (rows, *shape), f"initial.{name}": shape}
        if config.carries_velocity:
            shapes[f"velocity.{name}"] = stored
    before = config.conv_kernel - 1
    return shapes | {f"conv.{name}": (rows, size, before) for name, size in config.conv_channels.items()}
