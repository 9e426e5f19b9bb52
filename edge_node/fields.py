"""Describe configuration fields once, in the declaration of the dataclass that holds them.

Owns: what a field may hold (`Kind`), how it is declared (`setting`) and addresses.
Never: knows a field of the product (that is `edge_node.config`) or reads a file.
Invariant: a declared field carries everything said about it anywhere: parsing, error texts, the
commented default file and the reference table all come from the same `Setting`.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

REQUIRED: Any = object()
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?")
_TOML_TYPES = {bool: "a boolean", int: "an integer", float: "a number", str: "a string"}


class Address(NamedTuple):
    """Hold a host (name or IP address, IPv6 without brackets) and a port of 1 to 65535."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Tell whether only this machine can reach the address."""
        ip = _ip(self.host)
        return self.host == "localhost" if ip is None else ip.is_loopback

    @property
    def is_wildcard(self) -> bool:
        """Tell whether the host means every interface, so that nobody can be sent to it."""
        ip = _ip(self.host)
        return ip is not None and ip.is_unspecified


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def parse_address(text: str) -> Address:
    """Read `HOST:PORT` (`[HOST]:PORT` for IPv6); raises ValueError saying what is wrong."""
    host, colon, port = text.rpartition(":")
    if not colon or not host:
        raise ValueError(f'"{text}" is not HOST:PORT; write for example "192.168.1.10:7946"')
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if not isinstance(_ip(host), ipaddress.IPv6Address):
            raise ValueError(f'"[{host}]" is not an IPv6 address; write for example "[::1]:7946"')
    elif ":" in host:
        raise ValueError(
            f'"{text}" is ambiguous; put the IPv6 address in brackets: [{host}]:{port}'
        )
    elif not _HOST.fullmatch(host) or (re.fullmatch(r"[\d.]+", host) and _ip(host) is None):
        raise ValueError(f'"{host}" is neither a host name nor an IP address; correct it')
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 1 <= int(port) <= 65535:
        raise ValueError(f'"{port}" is not a port; use a number from 1 to 65535')
    return Address(host, int(port))


@dataclass(frozen=True, slots=True)
class Kind:
    """Say what a field may hold.

    `describe` is for people; `parse(value, base)` turns a TOML value into the field's type (paths
    relative to the folder `base`) or raises ValueError "what is wrong; what to do"; `from_text`
    turns an environment variable into a TOML value or raises ValueError.
    """

    describe: str
    parse: Callable[[Any, Path], Any]
    from_text: Callable[[str], Any] = str


def _typed(value: Any, *accepted: type) -> Any:
    if type(value) not in accepted:
        got = _TOML_TYPES.get(type(value), "a list" if isinstance(value, list) else "a table")
        wanted = _TOML_TYPES.get(accepted[-1], "a list of strings")
        hint = "; remove the quotes" if isinstance(value, str) and accepted[-1] is not list else ""
        hint = '; put it in double quotes: "..."' if accepted[-1] is str else hint
        hint = '; write for example ["192.168.1.10:7946"]' if accepted[-1] is list else hint
        raise ValueError(f"expected {wanted}, got {got}{hint or '; correct it'}")
    return value


def _ranged(value: float, low: float, high: float, unit: str) -> float:
    if not low <= value <= high:
        raise ValueError(f"{value} is out of range; use {low} to {high}{unit and ' ' + unit}")
    return value


def number(low: float, high: float, unit: str = "") -> Kind:
    """Accept a number of low to high, in `unit`."""
    return Kind(
        f"number, {low} to {high}{unit and ' ' + unit}",
        lambda value, base: float(_ranged(_typed(value, int, float), low, high, unit)),
        lambda text: _converted(text, float, "a number"),
    )


def integer(low: int, high: int, unit: str = "") -> Kind:
    """Accept an integer of low to high, in `unit`."""
    return Kind(
        f"integer, {low} to {high}{unit and ' ' + unit}",
        lambda value, base: _ranged(_typed(value, int), low, high, unit),
        lambda text: _converted(text, int, "an integer"),
    )


def _converted(text: str, convert: Callable[[str], Any], wanted: str) -> Any:
    try:
        return convert(text)
    except ValueError:
        raise ValueError(f'expected {wanted}, got "{text}"; correct it') from None


def flag() -> Kind:
    """Accept true or false."""

    def from_text(text: str) -> bool:
        if text.lower() not in ("true", "false", "1", "0"):
            raise ValueError(f'expected true or false, got "{text}"; correct it')
        return text.lower() in ("true", "1")

    return Kind("true or false", lambda value, base: _typed(value, bool), from_text)


def text(describe: str, check: Callable[[str, Path], Any] = lambda value, base: value) -> Kind:
    """Accept a string that `check(value, base)` turns into the field's value or refuses."""

    def parse(value: Any, base: Path) -> Any:
        if "\0" in _typed(value, str):
            raise ValueError("contains a NUL character; remove it")
        return check(value, base)

    return Kind(describe, parse)


def name(*, optional: bool = False) -> Kind:
    """Accept a name that can stand in state keys and URLs; "" too when optional."""

    def check(value: str, base: Path) -> str:
        if not _NAME.fullmatch(value) and not (optional and not value):
            raise ValueError(
                f'"{value}" is not a name; use 1 to 64 letters, digits, ".", "_" or "-", '
                "beginning with a letter or digit"
            )
        return value

    return text("name of letters, digits, `.`, `_`, `-`, at most 64", check)


def choice(*options: str) -> Kind:
    """Accept one of the options."""

    def check(value: str, base: Path) -> str:
        if value not in options:
            raise ValueError(f'"{value}" is not known; {suggest(value, options)}')
        return value

    return text(" or ".join(f'`"{option}"`' for option in options), check)


def address(*, optional: bool = False) -> Kind:
    """Accept HOST:PORT as an Address; "" as None when optional."""
    return text(
        "`HOST:PORT`, port 1 to 65535",
        lambda value, base: None if optional and not value else parse_address(value),
    )


def addresses() -> Kind:
    """Accept a list of HOST:PORT as a tuple of Address; comma-separated in the environment."""
    return Kind(
        "list of `HOST:PORT`",
        lambda value, base: tuple(parse_address(_typed(item, str)) for item in _typed(value, list)),
        lambda text: [item.strip() for item in text.split(",") if item.strip()],
    )


def path(*, optional: bool = False) -> Kind:
    """Accept a path, relative to the file's folder, as a Path; "" as None when optional."""

    def check(value: str, base: Path) -> Path | None:
        if not value and not optional:
            raise ValueError("is empty; give a path")
        return base / Path(value).expanduser() if value else None

    return text("path, relative to this file's folder", check)


@dataclass(frozen=True, slots=True)
class Setting:
    """Hold all that is known of one field; `default` is the TOML value, or REQUIRED."""

    key: str
    kind: Kind
    default: Any
    doc: str
    live: bool


def setting(kind: Kind, default: Any, doc: str, *, live: bool = False) -> Any:
    """Declare a dataclass field; live means that a reload applies it without a restart."""
    metadata = {"kind": kind, "default": default, "doc": doc, "live": live}
    if default is REQUIRED:
        return dataclasses.field(metadata=metadata)
    typed = kind.parse(default, Path())
    return dataclasses.field(default=typed, metadata=metadata)


def settings_of(section: type) -> dict[str, Setting]:
    """List a section's fields by key, in the order of their declaration."""
    return {
        field.name: Setting(key=field.name, **cast("Mapping[str, Any]", field.metadata))
        for field in dataclasses.fields(section)
    }


def toml_text(value: Any) -> str:
    """Write a string, boolean, number or list of strings as TOML."""
    return json.dumps(value, ensure_ascii=False)


def suggest(word: str, known: tuple[str, ...]) -> str:
    """Say which known word was probably meant, or list them all."""
    import difflib  # only an error needs it

    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else f"use one of: {', '.join(known)}"
