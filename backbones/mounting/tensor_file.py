"""Named tensors on disk (safetensors) that belong to one mounted model: what conversations and trained differences
share. Whatever is wrong with a file is a ValueError that names the file, and the tensor where it is one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class TensorFile:
    """A kind of file. format, version: as its metadata says; content, writer: as error messages name them.

    completed_identity: adds to an identity that was read what files written earlier did not need to say.
    """

    format: str
    version: int
    content: str
    writer: str
    completed_identity: Callable[[dict[str, Any]], dict[str, Any]] = dict

    def write(
        self, path: str | Path, tensors: Mapping[str, Tensor], identity: Mapping[str, Any], facts: Mapping[str, str]
    ) -> None:
        """identity: of the model that the tensors belong to, JSON values; facts: what else a reader needs to know."""
        path = Path(path)
        if not path.parent.is_dir() or path.is_dir():
            reason = "it is a folder" if path.is_dir() else "its folder does not exist, make it first"
            raise ValueError(f"cannot save a {self.content} to {path}: {reason}")
        own = {"format": self.format, "version": str(self.version), "config": json.dumps(identity, sort_keys=True)}
        # Copies: rows and layers may share storage, which the format refuses.
        copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        save_file(copies, path, metadata={**own, **facts})

    def read(self, path: Path, identity: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, Tensor]]:
        """Metadata and tensors (on the CPU, shapes unchecked) of a file that a model of this identity wrote."""
        if not path.is_file():
            raise ValueError(f"there is no file {path}; write a {self.content} with {self.writer}")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        except SafetensorError as error:
            raise ValueError(
                f"{path} is no readable safetensors file ({error}); it may be cut short: save it again"
            ) from error
        if metadata.get("format") != self.format:
            raise ValueError(
                f"{path} holds no {self.content} (format {metadata.get('format')!r}, expected {self.format!r})"
            )
        if metadata.get("version") != str(self.version):
            raise ValueError(f"{path} has version {metadata.get('version')}; this code reads version {self.version}")
        saved = self.completed_identity(self._saved_identity(path, metadata))
        differing = [
            f"{name} is {saved.get(name)!r} there and {value!r} here"
            for name, value in identity.items()
            if saved.get(name) != value
        ]
        if differing:
            raise ValueError(f"{path} was saved from a model mounted otherwise: {'; '.join(differing)}")
        return metadata, tensors

    def _saved_identity(self, path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
        try:
            saved = json.loads(metadata.get("config", ""))
        except json.JSONDecodeError:
            saved = None
        if not isinstance(saved, dict):
            raise ValueError(
                f"{path} is damaged: its metadata does not say which model it belongs to (config is "
                f"{metadata.get('config')!r}); save it again with {self.writer}"
            )
        return saved


def require_shapes(path: Path, tensors: Mapping[str, Tensor], expected: Mapping[str, Shape]) -> None:
    """Raise ValueError unless the file has the model's tensors, no others, each of its shape."""
    if faults := differences_from(expected, tensors):
        raise ValueError(f"{path} {'; '.join(faults)}: it is damaged or of another model, save it again")


def differences_from(expected: Mapping[str, Shape], tensors: Mapping[str, Tensor]) -> list[str]:
    """What keeps tensors from being those that a model expects, in words that follow a subject ("lacks a, b")."""
    faults = []
    if missing := [name for name in expected if name not in tensors]:
        faults.append(f"lacks {', '.join(missing)}")
    if extra := [name for name in tensors if name not in expected]:
        faults.append(f"has {', '.join(extra)}, which the model has not")
    return faults + [
        f"has {name} of shape {tuple(tensors[name].shape)}, the model's is {shape}"
        for name, shape in expected.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]
