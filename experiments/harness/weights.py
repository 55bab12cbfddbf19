"""Pretrained weights that the user names by a folder: what they are, for the record."""

from __future__ import annotations

import hashlib
from pathlib import Path


def weights_digest(folder: Path) -> str:
    """Twelve digits of a checkpoint folder: its `config.json`, and the names and sizes of all files.

    The weights themselves are not read: 16 GB take minutes, and a different checkpoint of the same sizes has other
    file dates but hardly the same configuration and name; it stands for the record, not against forgery.

    Raises:
        ValueError: the folder or its `config.json` is missing.
    """
    if not folder.is_dir():
        raise ValueError(f"--weights {folder} is no folder; give the folder of a checkpoint, with its config.json")
    config = folder / "config.json"
    if not config.is_file():
        raise ValueError(f"--weights {folder} has no config.json, so it is no checkpoint folder")
    digest = hashlib.sha256(config.read_bytes())
    for path in sorted(folder.iterdir()):
        if path.is_file():
            digest.update(f"{path.name}:{path.stat().st_size}\n".encode())
    return digest.hexdigest()[:12]
