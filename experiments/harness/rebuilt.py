"""A frozen configuration from the plain values that were logged of it: the way back from `identity.plain_values`."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

Record = TypeVar("Record")


def from_plain(kind: type[Record], plain: Mapping[str, Any]) -> Record:
    """A dataclass of that kind, its own records and tuples rebuilt all the way down.

    Raises:
        ValueError: fields that it has not, or lacks, or a value that it refuses: other code wrote them.
    """
    types_of = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(typing.cast(Any, kind)) if field.init}
    unknown = sorted(set(plain) - set(fields))
    no_default = dataclasses.MISSING
    missing = sorted(
        name
        for name, field in fields.items()
        if name not in plain and field.default is no_default and field.default_factory is no_default
    )
    if unknown or missing:
        raise ValueError(
            f"these values are of another {kind.__name__} than this code's: it has no {', '.join(unknown) or 'other'} "
            f"and needs {', '.join(missing) or 'nothing more'}; use the code of the commit that wrote them"
        )
    return kind(**{name: _rebuilt(types_of[name], value) for name, value in plain.items()})


def _has_fields(kind: Any, plain: Mapping[str, Any]) -> bool:
    return set(plain) <= {field.name for field in dataclasses.fields(kind)}


def _rebuilt(wanted: Any, value: Any) -> Any:
    origin, choices = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        kinds = [choice for choice in choices if choice is not type(None)]
        if isinstance(value, Mapping):  # of several records, the one whose fields these are
            kinds = [kind for kind in kinds if dataclasses.is_dataclass(kind) and _has_fields(kind, value)] or kinds
        return _rebuilt(kinds[0], value) if len(kinds) == 1 else value
    if dataclasses.is_dataclass(wanted) and isinstance(value, Mapping):
        return from_plain(typing.cast(type, wanted), value)
    if origin is tuple and isinstance(value, list):
        kinds = [choices[0]] * len(value) if choices[-1] is Ellipsis else list(choices)
        return tuple(_rebuilt(kind, item) for kind, item in zip(kinds, value, strict=True))
    return value
