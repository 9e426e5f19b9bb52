"""Turn one TOML file and the environment into checked values, and say which line is wrong.

Owns: how a problem reads (`Problem`, `ConfigError`), where it stands (`locate`), and the reading
of sections whose fields are declared with `edge_node.fields.setting`.
Never: knows a field of the product, or what fields must be together (`edge_node.config` does).
Invariant: every problem of a file is collected before anything is raised, and each names the
nearest line (or environment variable) that a person can correct.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from edge_node import fields
from edge_node.fields import REQUIRED

ENV_PREFIX = "EDGE_NODE__"
Keys = tuple[str | int, ...]


class Problem(NamedTuple):
    """Say one thing that is wrong: where it stands, which field, what, and what to do."""

    where: str
    field: str
    what: str

    def __str__(self) -> str:
        return ": ".join(part for part in self if part)


class ConfigError(ValueError):
    """Report every problem of a configuration, one `FILE:LINE: [section] field: ...` a line."""

    def __init__(self, *problems: Problem) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


class TomlSource:
    """Read a file's sections as declared, collecting its problems.

    `tables` are sections given once, `arrays` those given any number of times (`[[...]]`).
    Raises ConfigError where the file is missing, unreadable or no TOML.
    """

    def __init__(self, path: Path, tables: Mapping[str, type], arrays: Mapping[str, type]) -> None:
        self.path, self.tables, self.arrays = path, tables, arrays
        self.base = path.parent.absolute()
        self.text = _read(path)
        self.raw = _parse(path, self.text)
        self._from_env: dict[Keys, str] = {}
        self._problems: list[Problem] = []
        for title in self.raw:
            if title not in tables and title not in arrays:
                self.blame(
                    (title,), f"is not a section; {fields.suggest(title, (*tables, *arrays))}"
                )

    def raise_problems(self) -> None:
        """Raise a ConfigError of all problems noted so far, if there are any."""
        if self._problems:
            raise ConfigError(*self._problems)

    def blame(self, keys: Keys, what: str) -> None:
        """Note a problem of the value at `keys`, at the nearest line that the file has for it."""
        title = f"[[{keys[0]}]]" if keys[0] in self.arrays else f"[{keys[0]}]"
        field = " ".join([title, *(str(key) for key in keys[1:] if isinstance(key, str))])
        if keys in self._from_env:
            self._problems.append(Problem(f"environment {self._from_env[keys]}", field, what))
            return
        places = locate(self.text)
        known = (keys[:length] for length in range(len(keys), 0, -1))
        line = next((places[place] for place in known if place in places), 1)
        self._problems.append(Problem(f"{self.path}:{line}", field, what))

    def override(self, environ: Mapping[str, str]) -> None:
        """Put the values of variables `EDGE_NODE__SECTION__FIELD` over the file's."""
        for variable in sorted(environ):
            if not variable.startswith(ENV_PREFIX):
                continue
            title, _, key = variable.removeprefix(ENV_PREFIX).lower().partition("__")
            self._from_env[title, key] = variable
            settings = fields.settings_of(self.tables[title]) if title in self.tables else {}
            if not settings:
                hint = "cameras and accelerators are set in the file alone; "
                hint += f"the sections are: {', '.join(self.tables)}"
                self.blame((title, key), f"names no section that can be overridden; {hint}")
            elif key not in settings:
                self.blame((title, key), f"unknown field; {fields.suggest(key, (*settings,))}")
            elif isinstance(self.raw.setdefault(title, {}), dict):
                try:
                    self.raw[title][key] = settings[key].kind.from_text(environ[variable])
                except ValueError as error:
                    self.blame((title, key), str(error))

    def section(self, title: str) -> dict[str, Any]:
        """Check one of `tables`; the values by field, less those that are wrong."""
        raw = self.raw.get(title, {})
        if not isinstance(raw, dict):
            self.blame((title,), f"must be a section; write [{title}] on a line of its own")
            raw = {}
        return self._fields((title,), raw, self.tables[title])

    def array(self, title: str) -> list[dict[str, Any]]:
        """Check one of `arrays`; an element's values by field, less those that are wrong."""
        raw = self.raw.get(title, [])
        if not isinstance(raw, list) or not all(isinstance(one, dict) for one in raw):
            self.blame((title,), f"can be given several times; write [[{title}]] before each")
            raw = []
        kind = self.arrays[title]
        return [self._fields((title, index), one, kind) for index, one in enumerate(raw)]

    def _fields(self, keys: Keys, raw: dict[str, Any], kind: type) -> dict[str, Any]:
        settings = fields.settings_of(kind)
        for key in raw:
            if key not in settings and (*keys, key) not in self._from_env:
                hint = fields.suggest(key, tuple(settings))
                self.blame((*keys, key), f"unknown field; {hint}")
        values = {}
        for key, field in settings.items():
            value = raw.get(key, field.default)
            if value is REQUIRED:
                self.blame((*keys, key), f"is missing; give the {keys[0]} its {key}")
                continue
            try:
                values[key] = field.kind.parse(value, self.base)
            except ValueError as error:
                self.blame((*keys, key), str(error))
        return values


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        what = f"there is no such file; make one with: edge-node init {path.parent}"
    except UnicodeDecodeError:
        what = "is not UTF-8 text; save it as UTF-8"
    except OSError as error:
        what = f"cannot be read ({error.strerror}); correct its path or permissions"
    raise ConfigError(Problem(str(path), "", what))


def _parse(path: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # a number too long, brackets too deep
        what, _, where = str(error).partition(" (at ")
        line = re.search(r"line (\d+)", where)
        number = int(line[1]) if line else text.count("\n") + 1
        what = f"is not valid TOML: {what}; correct this line"
        raise ConfigError(Problem(f"{path}:{number}", "", what)) from None


def locate(source: str) -> dict[Keys, int]:
    """Map every path of keys (array elements by index) in valid TOML to its line, from 1.

    A statement is the fewest lines that parse alone, so strings and arrays over several lines
    hide nothing. O(lines x lines of the longest statement): called for errors only.
    """
    places: dict[Keys, int] = {}
    table: Keys = ()
    counts: dict[Keys, int] = {}
    for line, statement in _statements(source.replace("\r\n", "\n").split("\n")):
        keys = tuple(_first_keys(tomllib.loads(statement)))
        opening = statement.lstrip()[:2]
        if opening.startswith("["):
            table = keys
            if opening == "[[":  # one more element of the array
                counts[keys] = counts.get(keys, -1) + 1
                table = (*keys, counts[keys])
            keys = ()
        for length in range(len(table) + len(keys) + 1):
            places.setdefault((*table, *keys)[:length], line)
    return places


def _statements(lines: list[str]) -> Iterator[tuple[int, str]]:
    start = 0
    for end in range(1, len(lines) + 1):
        statement = "\n".join(lines[start:end])
        try:
            parsed = tomllib.loads(statement)
        except ValueError:
            continue
        if parsed:
            yield start + 1, statement
        start = end


def _first_keys(parsed: Any) -> Iterator[str | int]:
    while isinstance(parsed, dict) and parsed:
        key, parsed = next(iter(parsed.items()))
        yield key
