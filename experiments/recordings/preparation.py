"""From a source of recordings to a prepared set: shards in processes, units, index, card. Resumable at any moment."""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from backbones.speech import UnitCodebook
from backbones.speech.mimi import CODEBOOKS_MOSHI_USES, MimiTokenizer
from experiments.data.folders import whole_folder
from experiments.data.tokenizer import ConversationTokenizer
from experiments.recordings.card import write_card
from experiments.recordings.index import validation_names, write_index
from experiments.recordings.listening import Heard
from experiments.recordings.named_sets import prepared_folder
from experiments.recordings.parallel import run_jobs
from experiments.recordings.set_files import (
    CODEBOOK_FILE,
    SETTINGS_FILE,
    STATE_FILE,
    TOKENIZER_FILE,
    SetFolder,
    turns_in,
)
from experiments.recordings.settings import PreparationSettings
from experiments.recordings.shard_job import ShardJob, jobs_of, make_shard
from experiments.recordings.shards import read_shard, write_whole
from experiments.recordings.source_files import Drop, FoundSource
from experiments.recordings.sources import find_recordings
from experiments.recordings.units import fitted_codebook, make_units

_SETTLING_FRAMES = 25


def prepare_recordings(
    source: str | Path,
    name: str,
    data_dir: str | Path = "data_cache",
    settings: PreparationSettings | None = None,
    *,
    like: str | Path | None = None,
    mimi: str | Path | None = None,
    codebooks: int = CODEBOOKS_MOSHI_USES,
    processes: int | None = None,
    progress: bool = True,
) -> Path:
    """Prepares what `source` holds as the set `name`, and gives its folder (`RecordedConversations` opens it).

    source: a folder tree, or a manifest. like: the folder of another prepared set, or of a pool of synthetic
    utterances, whose units and vocabulary are used. mimi: the folder of a Mimi (transformers' format) whose first
    `codebooks` codes are kept beside the units. processes: at once; by default one a core.

    What was done before an interruption is kept, whatever the interruption was, and not done again; files that were
    added to the source since are added to the set. What cannot be read is left out and named in the card.

    Raises ValueError for a source without a recording that can be used, a name that stands for another source or other
    settings, and a disk that cannot be written to.
    """
    settings = settings or PreparationSettings()
    folder = SetFolder(root=prepared_folder(name, data_dir))
    processes = os.cpu_count() or 1 if processes is None else processes
    if processes < 1:
        raise ValueError(f"processes is {processes}; give at least 1")
    mimi_folder = None if mimi is None else Path(mimi).expanduser().resolve()
    silent_codes = None if mimi_folder is None else _silent_codes(mimi_folder, codebooks)
    source = Path(source).expanduser().resolve()
    found = find_recordings(source)
    try:
        _claim(folder, source, settings, like, mimi_folder, codebooks)
        jobs, died = _make_shards(
            folder, jobs_of(found.recordings, settings, mimi_folder, codebooks), processes, progress
        )
        digest = _finish(folder, found, jobs, died, settings, processes, progress)
        state = {"digest": digest, "shards": [job.digest for job in jobs], "silent_codes": silent_codes}
        state["codebook"] = UnitCodebook.load(folder.root / CODEBOOK_FILE).fingerprint
        write_whole(folder.root / STATE_FILE, json.dumps(state, indent=1).encode())
        _sweep(folder, digest, state["shards"])
        write_card(folder.root, [*found.drops, *died], found.ignored)
        return folder.root
    except OSError as error:
        raise ValueError(_disk_trouble(folder, error)) from error


def _claim(
    folder: SetFolder,
    source: Path,
    settings: PreparationSettings,
    like: str | Path | None,
    mimi_folder: Path | None,
    codebooks: int,
) -> None:
    """Writes down what the set is made of, or refuses where the name stands for something else."""
    folder.shards.mkdir(parents=True, exist_ok=True)
    identity = {
        "source": str(source),
        "settings": settings.as_dict(),
        "like": None if like is None else _vocabularies(Path(like).expanduser().resolve(), folder.root, settings),
        "mimi": None if mimi_folder is None else {"folder": str(mimi_folder), "codebooks": codebooks},
    }
    path = folder.root / SETTINGS_FILE
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else identity
    changed = [field for field in identity if before.get(field) != identity[field]]
    if changed and (folder.root / STATE_FILE).exists():
        if "settings" in changed:
            old, new = before.get("settings", {}), identity["settings"]
            changed = [f"{key} ({old.get(key)!r}, now {new[key]!r})" for key in new if old.get(key) != new[key]]
        raise ValueError(
            f"{folder.root} was prepared with other {', '.join(changed)}: give this set another name, or delete that "
            "folder"
        )
    if changed and like is None:
        for file in (CODEBOOK_FILE, TOKENIZER_FILE):  # of a preparation that was never finished
            (folder.root / file).unlink(missing_ok=True)
    write_whole(path, json.dumps(identity, indent=1).encode())


def _vocabularies(like: Path, root: Path, settings: PreparationSettings) -> str:
    """Copies the codebook and tokenizer of another set; gives the codebook's fingerprint."""
    codebook = UnitCodebook.load(like / CODEBOOK_FILE)
    if codebook.n_mels != settings.n_mels:
        raise ValueError(
            f"{like} has units of {codebook.n_mels} mel bands, n_mels is {settings.n_mels}; make them equal"
        )
    if not (like / TOKENIZER_FILE).is_file():
        raise ValueError(f"{like} has no {TOKENIZER_FILE}; give the folder of a prepared set")
    for file in (CODEBOOK_FILE, TOKENIZER_FILE):
        if not (root / file).exists():
            write_whole(root / file, (like / file).read_bytes())
    return codebook.fingerprint


def _make_shards(
    folder: SetFolder, jobs: Sequence[ShardJob], processes: int, progress: bool
) -> tuple[list[ShardJob], list[Drop]]:
    """Makes what is not there; gives the jobs whose shards are, and recordings that ended the process reading them."""
    missing = [job for job in jobs if not _is_made(folder, job)]
    total = sum(job.size_bytes for job in jobs)
    done = total - sum(job.size_bytes for job in missing)
    work = functools.partial(_make_shard, folder)
    with tqdm(
        total=total, initial=done, desc="recordings", unit="B", unit_scale=True, unit_divisor=1024, disable=not progress
    ) as bar:
        died = run_jobs(work, missing, lambda job: job.size_bytes, processes, bar)
        # One recording of several did it: each by itself, so that only that one is lost.
        singles = [replace(job, recordings=(one,)) for job in died if len(job.recordings) > 1 for one in job.recordings]
        lost = [job for job in died if len(job.recordings) == 1]
        lost += run_jobs(work, [job for job in singles if not _is_made(folder, job)], lambda _: 0, 2, bar)
    made = [job for job in [*(job for job in jobs if job not in died), *singles] if job not in lost]
    reason = (
        "the process that read it died: killed, out of memory, or a fault in a decoder; it is tried again next time"
    )
    return made, [Drop(what="file", path=str(job.recordings[0].files[0].path), reason=reason) for job in lost]


def _make_shard(folder: SetFolder, job: ShardJob, heard: Heard) -> None:
    make_shard(job, folder.shards, heard)


def _is_made(folder: SetFolder, job: ShardJob) -> bool:
    """Whether the shard is there; one that is not what was written is deleted."""
    path = folder.shards / job.digest
    if read_shard(path) is not None:
        return True
    if path.exists():
        shutil.rmtree(path)
    return False


def _finish(
    folder: SetFolder,
    found: FoundSource,
    jobs: Sequence[ShardJob],
    died: list[Drop],
    settings: PreparationSettings,
    processes: int,
    progress: bool,
) -> str:
    """Units, index and card of a set whose shards are made; gives its digest. Until the state is written, an old set
    stays what it was.
    """
    shards = [job.digest for job in jobs]
    names = [
        recording["name"]
        for shard in shards
        for recording in folder.shard_rows(shard)["recordings"]
        if recording["conversations"]
    ]
    if not names:
        reasons = [drop for shard in shards for one in folder.shard_rows(shard)["recordings"] for drop in one["drops"]]
        reasons += [asdict(drop) for drop in (*found.drops, *died)]
        told = "; ".join(f"{drop['path']}: {drop['reason']}" for drop in reasons[:3])
        raise ValueError(f"none of {len(found.recordings)} recordings can be used: {told}")
    held_out = validation_names(names, settings.validation_share)
    codebook = fitted_codebook(folder, shards, settings, lambda name: name not in held_out)
    tokenizer_file = folder.root / TOKENIZER_FILE
    if not tokenizer_file.exists():
        _train_tokenizer(folder, shards, settings, held_out)
    make_units(folder, shards, codebook, processes, progress)
    digest = _digest([settings.digest(), *shards, codebook.fingerprint, tokenizer_file.read_text(), *sorted(held_out)])
    if not folder.index(digest).exists():
        with whole_folder(folder.index(digest)) as target:
            write_index(folder, target, shards, held_out, settings.validation_share)
    return digest


def _silent_codes(mimi_folder: Path, codebooks: int) -> list[int]:
    """A frame of silence, once Mimi has settled on it. Refuses a folder that is no Mimi before any process meets it."""
    mimi = MimiTokenizer.from_folder(mimi_folder, codebooks)
    silence = np.zeros(_SETTLING_FRAMES * mimi.frame_samples, dtype=np.float32)
    return mimi.encode(silence, mimi.sample_rate_hz)[:, -1].tolist()


def _train_tokenizer(
    folder: SetFolder, shards: Sequence[str], settings: PreparationSettings, held_out: set[str]
) -> None:
    """Byte-level BPE of the training recordings' words; of bytes alone where no words are known."""

    texts = (
        turn["text"]
        for shard in shards
        for recording in folder.shard_rows(shard)["recordings"]
        if recording["name"] not in held_out
        for turn in turns_in({"recordings": [recording]})
        if turn["text"]
    )
    filling = folder.root / f".{TOKENIZER_FILE}"
    ConversationTokenizer.train(texts, settings.text_vocab_size, whole_words=()).save(filling)
    os.replace(filling, folder.root / TOKENIZER_FILE)


def _sweep(folder: SetFolder, digest: str, shards: Sequence[str]) -> None:
    """Deletes indices, shards and units that the set no longer has."""
    kept = set(shards)
    for path in (*folder.shards.iterdir(), *folder.units.iterdir(), *folder.root.glob("index-*")):
        if path.name.startswith(".") or path.stem in kept or path == folder.index(digest):
            continue
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _digest(parts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _disk_trouble(folder: SetFolder, error: OSError) -> str:
    full = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
    kept = sum(1 for path in folder.shards.glob("[!.]*")) if folder.shards.is_dir() else 0
    advice = "free some, and" if error.errno in full else "make it writable, then"
    return (
        f"cannot write to {folder.root} ({error.strerror or error}); {kept} shards are done and stay: {advice} run the "
        "same command again, it goes on from there"
    )
