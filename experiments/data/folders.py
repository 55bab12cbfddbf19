"""Cache folders that are either whole or not there, and know when a file in them has changed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import socket
import uuid
from collections.abc import Generator, Sequence
from pathlib import Path

CHECKSUMS = "checksums.json"


class CorruptCacheError(ValueError):
    """A file of a cache is missing or not what was written."""


@contextlib.contextmanager
def whole_folder(target: Path) -> Generator[Path]:
    """A folder to fill; at the end it gets its checksums and becomes `target` in one step.

    Whatever interrupts the filling (an error, Ctrl-C, a full disk), `target` does not come to be; what a killed process
    left behind is swept away by the next. Where another process has made `target` in the meantime, that one stays.
    Raises ValueError where no folder can be made.
    """
    filling = target.parent / f".filling-{target.name}-{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        filling.mkdir()
    except OSError as error:
        raise ValueError(
            f"cannot make a folder in {target.parent} ({error}): give as cache_dir a folder that can be written to"
        ) from error
    _sweep(target.parent)
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


def _sweep(parent: Path) -> None:
    """Deletes folders that processes of this machine were filling when they died; those of other machines may live."""
    ours = re.compile(rf"\.filling-.+-{re.escape(socket.gethostname())}-(\d+)-[0-9a-f]{{8}}")
    for folder in parent.glob(".filling-*"):
        match = ours.fullmatch(folder.name)
        if match and not _is_alive(int(match[1])):
            shutil.rmtree(folder, ignore_errors=True)


def _is_alive(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def file_checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def changed_files(folder: Path, required: Sequence[str]) -> dict[str, str]:
    """What is wrong with each file that is not as it was written: {path in the folder: "is missing" or "has changed"}.

    Raises CorruptCacheError where the list of checksums itself is missing, unreadable, or lacks a `required` file.
    """
    advice = f"delete the folder {folder} to have it made again"
    try:
        sums = json.loads((folder / CHECKSUMS).read_text())
    except (OSError, ValueError) as error:
        raise CorruptCacheError(f"{folder / CHECKSUMS} cannot be read ({error}): {advice}") from error
    if not isinstance(sums, dict):
        raise CorruptCacheError(f"{folder / CHECKSUMS} holds a {type(sums).__name__}, not a list by file: {advice}")
    unlisted = [name for name in required if name not in sums]
    if unlisted:
        raise CorruptCacheError(f"{folder / CHECKSUMS} does not list {', '.join(unlisted)}: {advice}")
    wrong: dict[str, str] = {}
    for name, checksum in sums.items():
        path = folder / name
        if not path.is_file():
            wrong[name] = "is missing"
        elif file_checksum(path) != checksum:
            wrong[name] = "has changed since it was written"
    return wrong
