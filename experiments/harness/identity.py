"""Configurations as plain values: what is logged as parameters, written as JSON, and fingerprinted."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any


def plain_values(value: Any) -> Any:
    """Dataclasses as dicts and tuples as lists, all the way down: what JSON can hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain_values(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_values(item) for item in value]
    assert value is None or isinstance(value, str | int | float | bool), f"{value!r} has no plain form"
    return value


def flattened(plain: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts and lists of dicts as one dict of dotted names."""
    if isinstance(plain, list) and plain and isinstance(plain[0], dict):
        plain = {str(index): item for index, item in enumerate(plain)}
    if not isinstance(plain, dict):
        return {prefix: plain}
    flat: dict[str, Any] = {}
    for name, value in plain.items():
        flat |= flattened(value, f"{prefix}.{name}" if prefix else name)
    return flat


def fingerprint(plain: Any) -> str:
    """Twelve hexadecimal digits that differ whenever a field differs."""
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:12]
