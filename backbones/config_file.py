"""The `config.json` of a checkpoint of any backbone, read with complaints that name the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_config_file(path: Path) -> dict[str, Any]:
    """The JSON object in a published `config.json`; ValueError where there is no such file, or it holds no object."""
    if not path.is_file():
        raise ValueError(f"there is no file {path}; a published checkpoint has a config.json beside its weights")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got a {type(content).__name__}")
    return content
