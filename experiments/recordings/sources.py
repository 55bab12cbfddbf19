"""Where recordings come from: a folder tree, or a manifest; one entry for all of them."""

from __future__ import annotations

from pathlib import Path

from experiments.recordings.folder_source import recordings_in_folder
from experiments.recordings.manifest_source import recordings_in_table, recordings_of_lhotse
from experiments.recordings.source_files import FoundSource


def find_recordings(source: Path) -> FoundSource:
    """What `source` holds: a folder, a .csv or .jsonl of rows, or one of lhotse's .jsonl.gz.

    Raises ValueError where it is not there, of another kind, or holds no recording.
    """
    if source.is_dir():
        found = recordings_in_folder(source)
    elif not source.is_file():
        raise ValueError(f"no source at {source}; give a folder of recordings or a manifest (.csv, .jsonl, .jsonl.gz)")
    elif source.name.endswith(".jsonl.gz"):
        found = recordings_of_lhotse(source)
    elif source.suffix in (".csv", ".jsonl"):
        found = recordings_in_table(source)
    else:
        raise ValueError(
            f"{source} is no folder and no manifest: a manifest ends in .csv, .jsonl or .jsonl.gz; of a single "
            "recording give the folder"
        )
    if not found.recordings:
        seen = ", ".join(f"{count} {suffix}" for suffix, count in found.ignored.items()) or "no other file"
        dropped = "".join(f"; {drop.path}: {drop.reason}" for drop in found.drops[:3])
        raise ValueError(
            f"{source} holds no recording that can be read: {seen}{dropped}; give a folder with sound files"
        )
    return found
