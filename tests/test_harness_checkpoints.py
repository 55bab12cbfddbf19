"""Checkpoints survive a full disk, refuse what is not theirs, and hold everything a run depends on."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from experiments.harness.checkpoints import (
    CheckpointFolder,
    CheckpointWriteError,
    load_weights_strictly,
    random_states,
    read_checkpoint,
    restore_random_states,
)

PARTS_OF_A_FULL_DISK = ("write", "fsync", "replace")


def folder_of(path: Path) -> CheckpointFolder:
    return CheckpointFolder(path, "abc", {"training.steps": 10})


def fill_the_disk(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    """From now on that part of writing a file fails as it does on a full disk."""

    def no_space(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if part == "write":
        written = 0

        def write_some(self: object, data: bytes) -> int:
            nonlocal written
            written += len(data)
            if written > 20_000:
                no_space()
            return len(data)

        monkeypatch.setattr("experiments.harness.checkpoints._FirstErrorKeeper.write_through", write_some)
    else:
        monkeypatch.setattr(os, part, no_space)


@pytest.mark.parametrize("part", PARTS_OF_A_FULL_DISK)
def test_a_full_disk_leaves_the_previous_checkpoint_whole(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of(tmp_path)
    folder.save({"weights": {"w": torch.full((10_000,), 1.0)}}, step=3, is_best=True)
    before = folder.last.read_bytes()
    with monkeypatch.context() as full:
        fill_the_disk(full, part)
        with pytest.raises(CheckpointWriteError, match=r"step 5.*No space left.*previous checkpoint is kept.*--resume"):
            folder.save({"weights": {"w": torch.full((10_000,), 2.0)}}, step=5, is_best=True)
    assert folder.last.read_bytes() == before == folder.best.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.ckpt", "last.ckpt"], "no partial file is left"
    content = folder_of(tmp_path).load_last()
    assert content is not None and content["step"] == 3 and content["weights"]["w"].eq(1).all()


def test_a_real_full_device_gives_the_same_error(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full (Linux)")
    (tmp_path / "last.partial").symlink_to("/dev/full")
    with pytest.raises(CheckpointWriteError, match="No space left"):
        folder_of(tmp_path).save({"weights": torch.zeros(100_000)}, step=1, is_best=False)


def test_best_stays_when_last_goes_on(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    folder.save({"x": 1}, step=1, is_best=True)
    folder.save({"x": 2}, step=2, is_best=False)
    assert read_checkpoint(folder.best)["x"] == 1
    assert read_checkpoint(folder.last)["x"] == 2


def test_a_checkpoint_of_another_configuration_is_refused_by_its_fields(tmp_path: Path) -> None:
    folder_of(tmp_path).save({"x": 1}, step=1, is_best=False)
    other = CheckpointFolder(tmp_path, "def", {"training.steps": 12})
    with pytest.raises(ValueError, match=r"configuration abc, this run is def: training\.steps \(10 -> 12\)"):
        other.load_last()


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    folder.save({"x": torch.zeros(1000)}, step=1, is_best=False)
    folder.last.write_bytes(folder.last.read_bytes()[:700])
    with pytest.raises(ValueError, match=r"last\.ckpt is not a readable checkpoint"):
        folder.load_last()


def test_weights_of_another_shape_are_named(tmp_path: Path) -> None:
    module = torch.nn.Linear(3, 5)
    weights = {"weight": torch.zeros(5, 4), "extra": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"missing: bias; not expected: extra; of another shape: weight \(5, 4\) inst"):
        load_weights_strictly(module, weights, tmp_path / "c.ckpt")


def test_random_states_come_back_through_a_file(tmp_path: Path) -> None:
    import random

    import numpy

    folder = folder_of(tmp_path)
    torch.manual_seed(7)
    numpy.random.seed(8)
    random.seed(9)
    folder.save({"random": random_states()}, step=1, is_best=False)
    drawn = (torch.rand(3).tolist(), numpy.random.rand(3).tolist(), random.random())
    content = folder.load_last()
    assert content is not None
    restore_random_states(content["random"])
    assert (torch.rand(3).tolist(), numpy.random.rand(3).tolist(), random.random()) == drawn
