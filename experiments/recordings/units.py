"""Units of every turn: a codebook fitted once on turns spread over the set, then each shard's log-mel through it."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits
from torch import Tensor
from tqdm import tqdm

from backbones.speech import FRAMES_PER_UNIT, MEL_FRAME_RATE_HZ, UnitCodebook
from experiments.recordings.parallel import run_jobs
from experiments.recordings.set_files import CODEBOOK_FILE, SetFolder, turns_in
from experiments.recordings.settings import PreparationSettings
from experiments.recordings.shards import part_name, read_rows, units_are_of, write_units

_FIT_SEED = 0


@dataclass(frozen=True, kw_only=True)
class _UnitsJob:
    folder: SetFolder
    shard: str


def fitted_codebook(
    folder: SetFolder, shards: Sequence[str], settings: PreparationSettings, is_trained_on: Callable[[str], bool]
) -> UnitCodebook:
    """The set's codebook: as it is there, else fitted. is_trained_on: of a recording's name.

    It stays as it is when recordings are added later: a unit keeps its meaning for models that were trained on it.
    """
    path = folder.root / CODEBOOK_FILE
    if path.exists():
        return UnitCodebook.load(path)
    mels = list(_spread_mels(folder, shards, settings.unit_fit_s, is_trained_on))
    with threadpool_limits(1):
        try:
            codebook = UnitCodebook.fit(mels, settings.unit_vocab_size, _FIT_SEED)
        except ValueError as error:
            raise ValueError(f"{error} (unit_vocab_size, --unit-vocab-size)") from error
    filling = path.with_name(f".{path.name}")
    codebook.save(filling)
    shutil.move(filling, path)
    return codebook


def _spread_mels(
    folder: SetFolder, shards: Sequence[str], wanted_s: float, is_trained_on: Callable[[str], bool]
) -> Iterator[Tensor]:
    """Log-mels (F, n_mels) of whole turns at even steps through the set, `wanted_s` seconds together or little more."""
    places: list[tuple[Path, int, int]] = []
    for shard in shards:
        for recording in folder.shard_rows(shard)["recordings"]:
            if is_trained_on(recording["name"]):
                places += [
                    (folder.shards / shard / part_name(turn["part"]), turn["first_frame"], turn["frames"])
                    for turn in turns_in({"recordings": [recording]})
                ]
    total_s = sum(frames for _, _, frames in places) / MEL_FRAME_RATE_HZ
    count = max(1, min(len(places), round(len(places) * wanted_s / max(total_s, 1e-9))))
    for number in range(count if places else 0):
        path, first, frames = places[number * len(places) // count]
        yield read_rows(path, "mel", first, frames).float()


def make_units(
    folder: SetFolder, shards: Sequence[str], codebook: UnitCodebook, processes: int, progress: bool
) -> None:
    """Writes the units of every shard that has none of this codebook yet."""
    folder.units.mkdir(exist_ok=True)
    jobs = [
        _UnitsJob(folder=folder, shard=shard)
        for shard in shards
        if not units_are_of(folder.units_file(shard), codebook.fingerprint)
    ]
    with tqdm(total=len(jobs), desc="units", unit="shard", disable=not progress) as bar:
        died = run_jobs(_make_units, jobs, lambda _: 1, min(processes, max(1, len(jobs))), bar)
    if died:
        raise ValueError(
            f"the process that made units of {len(died)} shards died, such as {died[0].shard}: free memory, and run "
            "the same command again"
        )


def _make_units(job: _UnitsJob, _heard: Callable[[float], None]) -> None:
    codebook = _codebook(job.folder.root / CODEBOOK_FILE)
    units: list[Any] = [np.zeros(0, dtype=np.int16)]
    for turn in turns_in(job.folder.shard_rows(job.shard)):
        part = job.folder.shards / job.shard / part_name(turn["part"])
        mel = read_rows(part, "mel", turn["first_frame"], turn["frames"]).float()
        units.append(codebook.encode(mel).numpy().astype(np.int16))
        assert len(units[-1]) == units_of(turn["frames"])
    write_units(job.folder.units_file(job.shard), np.concatenate(units), codebook.fingerprint)


@functools.lru_cache(maxsize=1)
def _codebook(path: Path) -> UnitCodebook:
    return UnitCodebook.load(path)


def units_of(frames: int) -> int:
    """Units of so many mel frames."""
    return -(-frames // FRAMES_PER_UNIT)
