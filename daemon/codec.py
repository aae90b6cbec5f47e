"""Dataclasses to JSON values and back: NaN and infinity survive, enums are their values, arrays are lists.

Used for the journal and the core's dump, so that both stay readable with any JSON tool.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping, Sequence
from enum import Enum
from functools import cache
from itertools import islice
from typing import Any, TypeVar, cast

import numpy as np

T = TypeVar("T")


def to_plain(value: Any) -> Any:
    """JSON value of a dataclass, mapping, sequence, enum, array or scalar. NaN -> None, inf -> "inf"."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, float | np.floating):
        number = float(value)
        if math.isnan(number):
            return None
        return number if math.isfinite(number) else ("inf" if number > 0 else "-inf")
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, np.integer | np.bool_):
        return value.item()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, np.ndarray):
        return [to_plain(v) for v in value]
    if isinstance(value, Mapping):
        return {_key(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(to_plain(v) for v in value)
    if isinstance(value, Sequence):
        return [to_plain(v) for v in value]
    raise TypeError(f"cannot write {type(value).__name__} to JSON: {value!r}")


def _key(key: Any) -> str:
    if isinstance(key, Enum):
        return str(key.value)
    if isinstance(key, tuple):
        return "\t".join(_key(part) for part in key)
    return str(key)


@cache
def _fields(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls)}


def from_plain(kind: Any, value: Any) -> Any:
    """The inverse of to_plain for an annotated type. Unknown keys of a dataclass are ignored (a newer writer)."""
    origin = typing.get_origin(kind)
    if kind is Any:
        return value
    if kind is float:
        return math.nan if value is None else float(value)
    if origin in (types.UnionType, typing.Union):
        members = [m for m in typing.get_args(kind) if m is not type(None)]
        return None if value is None else from_plain(members[0], value)
    if origin is None and isinstance(kind, type):
        return _class(kind, value)
    arguments = typing.get_args(kind)
    if origin is np.ndarray:
        return (
            np.array([from_plain(float, v) for v in value], dtype=float)
            if _flat(value)
            else np.array([[from_plain(float, v) for v in row] for row in value], dtype=float)
        )
    if origin is tuple and not (len(arguments) == 2 and arguments[1] is ...):
        return tuple(from_plain(a, v) for a, v in zip(arguments, value, strict=True))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {_unkey(arguments[0], k): from_plain(arguments[1], v) for k, v in _object(kind, value).items()}
    if isinstance(origin, type) and issubclass(origin, tuple | list | set | frozenset | Sequence):
        items = (from_plain(arguments[0], v) for v in value)
        made: Any = tuple if origin in (tuple, Sequence) else origin
        return made(items)
    raise TypeError(f"cannot read {kind!r} from JSON")


def _flat(value: Any) -> bool:
    return not value or not isinstance(value[0], list)


def _object(kind: Any, value: Any) -> Mapping[str, Any]:
    """A JSON object, or TypeError: what another version wrote may have another shape."""
    if not isinstance(value, Mapping):
        raise TypeError(f"cannot read {kind!r} from {type(value).__name__}: a JSON object is needed")
    return value


def _class(kind: type, value: Any) -> Any:
    if dataclasses.is_dataclass(kind):
        fields = _fields(kind)
        return kind(**{k: from_plain(fields[k], v) for k, v in _object(kind, value).items() if k in fields})
    if issubclass(kind, tuple) and hasattr(kind, "_fields"):
        hints = typing.get_type_hints(kind)
        return kind(*(from_plain(hints[n], v) for n, v in zip(kind._fields, value, strict=False)))
    if issubclass(kind, Enum):
        return kind(value)
    if issubclass(kind, np.ndarray):
        return np.array([from_plain(float, v) for v in value], dtype=float)
    make: Any = kind
    return make(value)


def _unkey(kind: Any, key: str) -> Any:
    origin = typing.get_origin(kind)
    if hasattr(kind, "_fields"):
        return kind(*key.split("\t"))
    if origin is tuple:
        parts = iter(key.split("\t"))
        # A tuple within the key, such as an Entity, takes as many parts as it has fields.
        return tuple(
            _unkey(a, "\t".join(islice(parts, len(getattr(a, "_fields", "1")))))
            for a in typing.get_args(kind)
        )
    made: Any = kind
    return made(key)


def decode(kind: type[T], value: Any) -> T:
    """from_plain with the type kept for the checker."""
    return cast(T, from_plain(kind, value))
