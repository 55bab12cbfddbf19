"""Shards: the log-mel and codes of turns in parts of some minutes, each a safetensors file that is read slice by slice.

    shards/<digest>/part-000.safetensors   mel (F, n_mels) float16 and, with a Mimi, codes (T, Q) int16: turns in a row
                    part-001.safetensors   ...
                    shard.json             recordings, conversations, turns with their places, drops, sizes of the parts
    units/<digest>.safetensors             units (U,) int16 at 50 Hz of all turns of the shard in a row

A shard comes to be in one step or not at all (`experiments.data.folders.whole_folder`).
"""

from __future__ import annotations

import functools
import json
import os
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor

from experiments.data.folders import CorruptCacheError

SHARD_FILE = "shard.json"
PART_FRAMES = 60_000
"""10 minutes of turns: 10 MB at 80 mel bands."""

_OPEN_FILES = 64

Mel = NDArray[np.float16]
Codes = NDArray[np.int16]


class PartWriter:
    """Turns into parts of a shard's folder; memory is that of one part."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._mels: list[Mel] = []
        self._codes: list[Codes] = []
        self._frames = 0
        self._code_frames = 0
        self.sizes: dict[str, int] = {}

    def add(self, mel: Mel, codes: Codes | None) -> dict[str, int]:
        """Writes a turn's mel (F, n_mels) and codes (T, Q); gives its place: part, first_frame, frames, ..."""
        if self._frames and self._frames + len(mel) > PART_FRAMES:
            self.flush()
        place = {"part": len(self.sizes), "first_frame": self._frames, "frames": len(mel)}
        self._mels.append(mel)
        self._frames += len(mel)
        if codes is not None:
            place |= {"first_code": self._code_frames, "codes": len(codes)}
            self._codes.append(codes)
            self._code_frames += len(codes)
        return place

    def flush(self) -> None:
        if not self._mels:
            return
        arrays: dict[str, NDArray[Any]] = {"mel": np.concatenate(self._mels)}
        if self._codes:
            arrays["codes"] = np.concatenate(self._codes)
        name = part_name(len(self.sizes))
        self.sizes[name] = _write(self._folder / name, arrays, {})
        self._mels, self._codes, self._frames, self._code_frames = [], [], 0, 0


def part_name(number: int) -> str:
    return f"part-{number:03d}.safetensors"


def _write(path: Path, arrays: dict[str, NDArray[Any]], metadata: dict[str, str]) -> int:
    """Bytes written. Through Python's own file, whose errors are OSErrors: a full disk can be told from a fault."""
    content = save(arrays, metadata)
    with path.open("wb") as file:
        file.write(content)
    return len(content)


def write_whole(path: Path, content: bytes) -> None:
    """A file that has all of the content or is not there, whatever happens in between."""
    filling = path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}")
    try:
        with filling.open("wb") as file:
            file.write(content)
        os.replace(filling, path)
    finally:
        filling.unlink(missing_ok=True)


def write_units(path: Path, units: NDArray[np.int16], fingerprint: str) -> None:
    """units (U,) of a shard's turns. fingerprint: of the codebook they are of."""
    write_whole(path, save({"units": units}, {"codebook": fingerprint}))


def units_are_of(path: Path, fingerprint: str) -> bool:
    """Whether the units are there and of that codebook."""
    try:
        with safe_open(path, framework="np") as file:
            return (file.metadata() or {}).get("codebook") == fingerprint
    except (OSError, SafetensorError):
        return False


def read_shard(folder: Path) -> dict[str, Any] | None:
    """A shard's description where all of its parts are there in the sizes they were written in, else None."""
    try:
        described = json.loads((folder / SHARD_FILE).read_text(encoding="utf-8"))
        sizes = described["parts"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    is_whole = all((folder / name).is_file() and (folder / name).stat().st_size == size for name, size in sizes.items())
    return described if is_whole else None


def read_rows(path: Path, name: str, first: int, count: int) -> Tensor:
    """Rows [first, first + count) of an array of the file; only they are read.

    CorruptCacheError where the file is missing, damaged, or shorter.
    """
    try:
        rows = _opened(path).get_slice(name)[first : first + count]
    except (OSError, SafetensorError) as error:
        raise CorruptCacheError(f"{path} cannot be read ({error}): prepare the recordings again") from error
    if len(rows) != count:
        raise CorruptCacheError(f"{path} has {len(rows)} of {count} rows of {name}: prepare the recordings again")
    return torch.from_numpy(np.ascontiguousarray(rows))


@functools.lru_cache(maxsize=_OPEN_FILES)
def _opened(path: Path) -> Any:
    """Mapped into memory: what is read stays the operating system's, to drop when it wants."""
    return safe_open(path, framework="np")
