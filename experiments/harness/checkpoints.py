"""Checkpoints that a crash, a full disk or a wrong configuration cannot turn into a loss or a silent mix-up.

A checkpoint is one file: everything that the rest of the run depends on. It is written beside the old one, flushed to
the disk and renamed over it, so that at every moment a complete `last.ckpt` exists once the first was written.
`best.ckpt` is a hard link to what was `last.ckpt` when the watched loss was lowest.
"""

from __future__ import annotations

import io
import os
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
import torch

FORMAT_VERSION = 1


class CheckpointWriteError(OSError):
    """A checkpoint could not be written; the one before it is untouched."""


class CheckpointFolder:
    """The last and the best checkpoint of one arm, tied to the fingerprint of its configuration."""

    def __init__(self, folder: Path, fingerprint: str, config: Mapping[str, Any]) -> None:
        self.folder = folder
        self.fingerprint = fingerprint
        self.config = dict(config)
        self.last = folder / "last.ckpt"
        self.best = folder / "best.ckpt"
        self.last_saved_step: int | None = None

    def save(self, content: Mapping[str, Any], *, step: int, is_best: bool) -> Path:
        """Writes `last.ckpt` in one piece (and points `best.ckpt` at it).

        Raises:
            CheckpointWriteError: the disk is full or unwritable; the previous files are as they were.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        whole = {
            "format": FORMAT_VERSION,
            "fingerprint": self.fingerprint,
            "config": self.config,
            "step": step,
            **content,
        }
        try:
            write_atomically(self.last, whole)
            if is_best:
                self._point_best_at_last()
        except OSError as error:
            kept = "no earlier checkpoint exists"
            if self.last.exists():
                kept = f"the previous checkpoint is kept: {self.last}"
            raise CheckpointWriteError(
                error.errno,
                f"could not write the checkpoint of step {step}: {error.strerror or error}; {kept}. "
                "Free some space and start again with --resume",
            ) from error
        self.last_saved_step = step
        return self.last

    def _point_best_at_last(self) -> None:
        temporary = self.best.with_suffix(".partial")
        temporary.unlink(missing_ok=True)
        try:
            os.link(self.last, temporary)
        except OSError:  # file systems without hard links: the same bytes, at the price of a copy
            shutil.copyfile(self.last, temporary)
        os.replace(temporary, self.best)

    def last_good(self) -> str:
        """Where a run that broke can be taken up, in words."""
        kept = [path for path in (self.last, self.best) if path.exists()]
        return f"the last good checkpoint is {kept[0]}" if kept else "no checkpoint had been written yet"

    def load_last(self) -> dict[str, Any] | None:
        """The content of `last.ckpt` on the CPU, or None where nothing was saved yet.

        Raises:
            ValueError: not a checkpoint, of another format, or of another configuration (the fields are named).
        """
        if not self.last.exists():
            return None
        content = read_checkpoint(self.last)
        if content["fingerprint"] != self.fingerprint:
            changed = ", ".join(differing_fields(content["config"], self.config)) or "the fields compared are equal"
            raise ValueError(
                f"{self.last} was written by configuration {content['fingerprint']}, this run is {self.fingerprint}: "
                f"{changed}. Resume with the same options, or start a new run without --resume"
            )
        self.last_saved_step = content["step"]
        return content


def write_atomically(path: Path, content: Mapping[str, Any]) -> None:
    """torch.save to a temporary file in the same folder, fsync, rename, fsync of the folder.

    Raises:
        OSError: nothing at `path` has changed then, and the temporary file is gone.
    """
    temporary = path.with_suffix(".partial")
    try:
        with open(temporary, "wb") as file:
            recorder: Any = _FirstErrorKeeper(file)
            try:
                torch.save(dict(content), recorder)
            except RuntimeError:
                # torch's zip writer turns an OSError of the file below it into a RuntimeError without errno.
                if recorder.first_error is not None:
                    raise recorder.first_error from None
                raise
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        temporary.unlink(missing_ok=True)


class _FirstErrorKeeper(io.BufferedIOBase):
    """Passes writes on to a file and remembers the first OSError, which torch would otherwise hide."""

    def __init__(self, file: io.BufferedWriter) -> None:
        self._file = file
        self.first_error: OSError | None = None

    def write_through(self, data: Any) -> int:
        return self._file.write(data)

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        try:
            return self.write_through(data)
        except OSError as error:
            self.first_error = self.first_error or error
            raise


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of one checkpoint file, on the CPU, unpickling nothing but tensors and plain containers.

    Raises:
        ValueError: the file is damaged, or of another format version.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{path} is not a readable checkpoint ({type(error).__name__}); move it away, or start a new run"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT_VERSION:
        raise ValueError(f"{path} is no checkpoint of format {FORMAT_VERSION}; start a new run without --resume")
    return content


def differing_fields(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """`field (old -> new)` for every entry in which two flattened configurations differ, at most eight."""
    names = sorted({*before, *now}, key=str)
    changed = [
        f"{name} ({before.get(name, 'absent')} -> {now.get(name, 'absent')})"
        for name in names
        if before.get(name, "absent") != now.get(name, "absent")
    ]
    return changed[:8]


def load_weights_strictly(module: torch.nn.Module, weights: Mapping[str, torch.Tensor], source: Path) -> None:
    """`load_state_dict` that names what does not fit.

    Raises:
        ValueError: missing, surplus or differently shaped tensors; up to three of each are named.
    """
    own = module.state_dict()
    missing = [name for name in own if name not in weights]
    surplus = [name for name in weights if name not in own]
    reshaped = [
        f"{name} {tuple(weights[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    problems = [
        f"{kind} {', '.join(names[:3])}{' and more' if len(names) > 3 else ''}"
        for kind, names in (("missing:", missing), ("not expected:", surplus), ("of another shape:", reshaped))
        if names
    ]
    if problems:
        raise ValueError(
            f"{source} does not fit this model ({'; '.join(problems)}); it needs the configuration it was written with"
        )
    module.load_state_dict(weights, strict=True)


def random_states() -> dict[str, Any]:
    """State of every random generator a training step may draw from."""
    state = numpy.random.get_state(legacy=True)
    assert isinstance(state, tuple)
    name, keys, position, has_gauss, cached = state
    version, words, gauss = random.getstate()
    states: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": [name, torch.from_numpy(keys.astype(numpy.int64)), position, has_gauss, cached],
        "python": [version, list(words), gauss],
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def restore_random_states(states: Mapping[str, Any]) -> None:
    """Puts back what `random_states` took."""
    torch.set_rng_state(states["torch"])
    name, keys, position, has_gauss, cached = states["numpy"]
    numpy.random.set_state((name, keys.numpy().astype(numpy.uint32), position, has_gauss, cached))
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])
