"""Changing single fields of a frozen configuration from the command line: `--set training.steps=10`."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def apply_overrides(config: Any, assignments: Sequence[str]) -> Any:
    """Returns a copy of a dataclass tree with every `dotted.field=value` of `assignments` applied, left to right.

    Rows of a tuple of dataclasses are addressed by their `name` (`arms.ttt-mlp.ttt.mini_batch_size=16`), or by
    their place where they have none (`data.curriculum.0.steps=5`).

    Raises:
        ValueError: no such field (the message lists those that exist), a value that does not convert to the field's
            type, or a value that the dataclass itself refuses.
    """
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals or not path.strip():
            raise ValueError(
                f"--set expects dotted.field=value, for example training.steps=10; it was given {assignment!r}"
            )
        config = _replaced(config, path.strip().split("."), text.strip(), path.strip())
    return config


def _replaced(owner: Any, names: list[str], text: str, whole_path: str) -> Any:
    """`owner` with the field that `names` leads to set to the converted `text`."""
    first, *rest = names
    if isinstance(owner, tuple):
        index = _row_index(owner, first, whole_path)
        if not rest:
            raise ValueError(
                f"--set {whole_path}: a whole row can't be set; name one of its fields: {_field_list(owner[index])}"
            )
        return (*owner[:index], _replaced(owner[index], rest, text, whole_path), *owner[index + 1 :])
    if not dataclasses.is_dataclass(owner):
        raise ValueError(f"--set {whole_path}: there is nothing below {type(owner).__name__} {owner!r} to set")
    _require_field(owner, first)
    if rest:
        below = getattr(owner, first)
        if below is None:
            raise ValueError(
                f"--set {whole_path}: {type(owner).__name__}.{first} is not set here, so it has no fields to change"
            )
        return dataclasses.replace(owner, **{first: _replaced(below, rest, text, whole_path)})
    field_type = typing.get_type_hints(type(owner))[first]
    return dataclasses.replace(owner, **{first: converted(text, field_type, f"{type(owner).__name__}.{first}")})


def _require_field(owner: Any, name: str) -> None:
    settable = [field.name for field in dataclasses.fields(owner) if field.init]
    if name not in settable:
        raise ValueError(f"{type(owner).__name__} has no field {name!r}; it has {', '.join(settable)}")


def _field_list(owner: Any) -> str:
    return (
        ", ".join(field.name for field in dataclasses.fields(owner)) if dataclasses.is_dataclass(owner) else repr(owner)
    )


def _row_index(rows: tuple[Any, ...], name: str, whole_path: str) -> int:
    labels = [_row_label(row, index) for index, row in enumerate(rows)]
    if name not in labels:
        raise ValueError(f"--set {whole_path}: there is no row {name!r}; there are {', '.join(labels)}")
    return labels.index(name)


def _row_label(row: Any, index: int) -> str:
    named = dataclasses.is_dataclass(row) and any(field.name == "name" for field in dataclasses.fields(row))
    return typing.cast(Any, row).name if named else str(index)


def converted(text: str, wanted: Any, field_name: str) -> Any:
    """`text` as a value of the type `wanted`: int, float, bool, str, Path, Literal, `X | None` or `tuple[X, ...]`."""
    origin, choices = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (typing.Union, types.UnionType):
        if text.lower() in ("none", "null") and type(None) in choices:
            return None
        for choice in (choice for choice in choices if choice is not type(None)):
            try:
                return converted(text, choice, field_name)
            except ValueError as error:
                refusal = error
        raise refusal
    if origin is typing.Literal:
        if text not in choices:
            raise ValueError(f"{field_name} is one of {', '.join(map(str, choices))}; it was given {text!r}")
        return text
    if origin is tuple:
        inner = text.strip("()[] ")
        return tuple(converted(part.strip(), choices[0], field_name) for part in inner.split(",") if part.strip())
    if wanted is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(f"{field_name} is true or false; it was given {text!r}")
        return text.lower() == "true"
    if wanted in (int, float, str, Path):
        try:
            return wanted(text)
        except ValueError:
            raise ValueError(f"{field_name} takes {_article(wanted)}; it was given {text!r}") from None
    raise ValueError(f"{field_name} can't be set from the command line; set one of the fields below it")


def _article(wanted: type) -> str:
    return {int: "a whole number", float: "a number", str: "a text", Path: "a path"}[wanted]
