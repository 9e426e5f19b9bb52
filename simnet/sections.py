"""Frozen dataclasses from TOML tables, and nothing that they do not name.

Owns the reading of a table. Never knows what a table is for. Invariant: a key that is unknown or
missing, or a value of another type, is refused with its place and name, so that a typing error
cannot change a run.
"""

import types
from collections.abc import Mapping
from dataclasses import MISSING, fields
from difflib import get_close_matches
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


def read(kind: type[T], table: Any, where: str) -> T:
    """Return a table as a dataclass, lists as tuples. Raises ValueError naming what is wrong."""
    if not isinstance(table, Mapping):
        raise ValueError(f"{where}: must be a table")
    hints = get_type_hints(kind)
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    refuse_unknown(table, known, where)
    for name, field in known.items():
        if name not in table and field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{where}: {name!r} is missing")
    given = {name: _typed(hints[name], value, f"{where} {name}") for name, value in table.items()}
    try:
        return kind(**given)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def refuse_unknown(table: Mapping[str, Any], known: Any, where: str) -> None:
    """Raise ValueError for a key that is not known, and say which may be meant."""
    for name in sorted(set(table) - set(known)):
        close = get_close_matches(name, list(known), 1)
        meant = f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"
        raise ValueError(f"{where}: unknown key {name!r}{meant}")


def _typed(hint: Any, value: Any, where: str) -> Any:
    """Return a value as its field wants it."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hasattr(hint, "__dataclass_fields__") and isinstance(value, hint):
        return value
    if origin in (Union, types.UnionType):
        if type(value) in arguments:
            return value
        for one in arguments:
            try:
                return _typed(one, value, where)
            except ValueError:
                continue
        wanted = " or ".join(_word(one) for one in arguments if one is not types.NoneType)
        raise ValueError(f"{where} = {value!r}: must be {wanted}")
    if origin is tuple and isinstance(value, list):
        return tuple(_typed(arguments[0], one, where) for one in value)
    if origin is not None and issubclass(origin, Mapping) and isinstance(value, Mapping):
        return {key: _typed(arguments[1], one, f"{where}.{key}") for key, one in value.items()}
    if hasattr(hint, "__dataclass_fields__"):
        return read(hint, value, where)
    if hint is Any:
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(hint, type) or type(value) is not hint:
        raise ValueError(f"{where} = {value!r}: must be {_word(hint)}")
    return value


def _word(hint: Any) -> str:
    words = {float: "a number", int: "a whole number", str: "a text", bool: "true or false"}
    return words.get(hint, "a list" if get_origin(hint) is tuple else "a table")
