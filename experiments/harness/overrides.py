"""Changing single fields of a frozen configuration from the command line: `--set training.steps=10`."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def apply_overrides(config: Any, assignments: Sequence[str]) -> Any:
    """Returns a copy of a dataclass tree with every `dotted.field=value` of `assignments` applied.

    Rows of a tuple of dataclasses are addressed by their `name` (`arms.ttt-mlp.ttt.mini_batch_size=16`), or by
    their place where they have none (`data.curriculum.0.steps=5`). Each record is rebuilt once, with all changes, so
    that fields which have to agree can be changed together. Of two values for a field the later one counts.

    Raises:
        ValueError: no such field (the message lists those that exist), a value that does not convert to the field's
            type, or a value that the dataclass itself refuses.
    """
    tree: dict[str, Any] = {}
    for assignment in assignments:
        path, equals, text = (part.strip() for part in assignment.partition("="))
        if not equals or not path:
            raise ValueError(
                f"--set expects dotted.field=value, for example training.steps=10; it was given {assignment!r}"
            )
        *above, last = path.split(".")
        branch = tree
        for name in above:
            branch = branch.setdefault(name, {})
            if not isinstance(branch, dict):
                raise ValueError(
                    f"--set {path}: {name} is given a value and so are fields below it; give one or the other"
                )
        branch[last] = text
    return _replaced(config, tree, "") if tree else config


def _replaced(owner: Any, changes: dict[str, Any], path: str) -> Any:
    """`owner` with the fields that `changes` names set: to a converted text, or to what is below them, replaced."""
    if isinstance(owner, tuple):
        rows = list(owner)
        for name, below in changes.items():
            index = _row_index(owner, name, f"{path}{name}")
            if not isinstance(below, dict):
                raise ValueError(
                    f"--set {path}{name}: a whole row can't be set; name one of its fields: {_field_list(owner[index])}"
                )
            rows[index] = _replaced(owner[index], below, f"{path}{name}.")
        return tuple(rows)
    if not dataclasses.is_dataclass(owner) or isinstance(owner, type):
        raise ValueError(f"--set {path}{next(iter(changes))}: there is nothing below {type(owner).__name__} {owner!r}")
    types_of = typing.get_type_hints(type(owner))
    new: dict[str, Any] = {}
    for name, change in changes.items():
        _require_field(owner, name)
        below = getattr(owner, name)
        if not isinstance(change, dict):
            new[name] = converted(change, types_of[name], f"{type(owner).__name__}.{name}")
        elif below is None:
            raise ValueError(
                f"--set {path}{name}.{next(iter(change))}: {type(owner).__name__}.{name} is not set here, "
                "so it has no fields to change"
            )
        else:
            new[name] = _replaced(below, change, f"{path}{name}.")
    return dataclasses.replace(owner, **new)


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
        *earlier, last = [choice for choice in choices if choice is not type(None)]
        for choice in earlier:
            try:
                return converted(text, choice, field_name)
            except ValueError:
                continue  # the text may fit one of the others; the last one complains
        return converted(text, last, field_name)
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
