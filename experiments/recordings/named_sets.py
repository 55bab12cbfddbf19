"""Prepared sets by their names: where one lies in the data cache, and which there are."""

from __future__ import annotations

import re
from pathlib import Path

from experiments.recordings.set_files import STATE_FILE

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def prepared_folder(name: str, data_dir: str | Path) -> Path:
    """Where the set of that name lies in the data cache. ValueError where the name is none for a folder."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name for a set: give letters, digits, dots, dashes, such as 'podcasts-2024'")
    return Path(data_dir).expanduser().resolve() / "recordings" / name


def find_prepared(name_or_path: str, data_dir: str | Path) -> Path:
    """The folder of a prepared set, given by its name in the data cache or by its path.

    Raises ValueError, naming the sets that there are, where there is none.
    """
    given = Path(name_or_path).expanduser()
    if (given / STATE_FILE).is_file():
        return given.resolve()
    if _NAME.fullmatch(name_or_path):
        named = prepared_folder(name_or_path, data_dir)
        if (named / STATE_FILE).is_file():
            return named
        if named.is_dir():
            raise ValueError(f"{named} was begun and never finished: run the same `make data` again, it goes on")
    home = Path(data_dir).expanduser().resolve() / "recordings"
    there = sorted(path.parent.name for path in home.glob(f"*/{STATE_FILE}"))
    raise ValueError(
        f"--data {name_or_path} is no prepared set, neither by its path nor by a name in {home} (there "
        f"{'are ' + ', '.join(there) if there else 'is none'}); prepare one: make data SOURCE=/recordings NAME=name"
    )
