"""Cache folders that are either whole or not there, and know when a file in them has changed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import uuid
from collections.abc import Generator
from pathlib import Path

CHECKSUMS = "checksums.json"


class CorruptCacheError(ValueError):
    """A file of a cache is missing or not what was written."""


@contextlib.contextmanager
def whole_folder(target: Path) -> Generator[Path]:
    """A folder to fill; at the end it gets its checksums and becomes `target` in one step.

    Whatever interrupts the filling (an error, Ctrl-C, a full disk), `target` does not come to be. Where another process
    has made `target` in the meantime, that one stays.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    filling = target.parent / f".filling-{target.name}-{uuid.uuid4().hex[:8]}"
    filling.mkdir()
    try:
        yield filling
        files = sorted(p for p in filling.rglob("*") if p.is_file())
        sums = {p.relative_to(filling).as_posix(): file_checksum(p) for p in files}
        (filling / CHECKSUMS).write_text(json.dumps(sums, indent=0))
        try:
            filling.rename(target)
        except OSError:
            if not (target / CHECKSUMS).is_file():
                raise
    finally:
        shutil.rmtree(filling, ignore_errors=True)


def file_checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def changed_files(folder: Path) -> dict[str, str]:
    """What is wrong with each file that is not as it was written: {path in the folder: "is missing" or "has changed"}.

    Raises CorruptCacheError where the list of checksums itself is missing or unreadable.
    """
    try:
        sums = json.loads((folder / CHECKSUMS).read_text())
    except (OSError, ValueError) as error:
        raise CorruptCacheError(
            f"{folder / CHECKSUMS} cannot be read ({error}): delete the folder {folder} to have it made again"
        ) from error
    wrong: dict[str, str] = {}
    for name, checksum in sums.items():
        path = folder / name
        if not path.is_file():
            wrong[name] = "is missing"
        elif file_checksum(path) != checksum:
            wrong[name] = "has changed since it was written"
    return wrong
