"""The table of languages: the built-in one, and what an operator's file adds and changes."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from pydantic import ValidationError
from sandfleet_config.errors import SpecInvalid
from sandfleet_config.faults import describe_faults
from sandfleet_config.settings import SettingsInvalid

from sandfleet.languages.language import LANGUAGE_NAME, Language

if TYPE_CHECKING:
    from collections.abc import Iterator

VARIABLE: Final = "SANDFLEET_LANGUAGES"
MAX_FILE_BYTES: Final = 1 << 20
MAX_LANGUAGES: Final = 1000


class LanguageTable(Mapping[str, Language]):
    """Languages by name. `find` also knows aliases."""

    def __init__(self, languages: Mapping[str, Language], changed: frozenset[str] = frozenset()) -> None:
        self._languages = dict(languages)
        self.changed = changed
        """The languages that the operator's file has."""
        # A name outranks an alias, and a language of the operator's one that is built in.
        order = sorted(languages, key=lambda name: name in changed)
        self._aliases = {alias: name for name in order for alias in languages[name].aliases}

    def __getitem__(self, name: str) -> Language:
        """Return the language of that name."""
        return self._languages[name]

    def __iter__(self) -> Iterator[str]:
        """Yield the names."""
        return iter(self._languages)

    def __len__(self) -> int:
        """Return the number of languages."""
        return len(self._languages)

    def find(self, name: str) -> tuple[str, Language]:
        """Return name and row of the language `name`, which may be an alias.

        Raises:
            SpecInvalid: there is none; the message lists all, and names the nearest.
        """
        known = name if name in self._languages else self._aliases.get(name, "")
        if not known:
            near = difflib.get_close_matches(name, [*self._languages, *self._aliases], n=1)
            hint = f", did you mean {near[0]}?" if near else ""
            message = f"there is no language {ascii(name[:64])[1:-1]}{hint} (there are {', '.join(self)})"
            raise SpecInvalid.of(f"language: {message}", errors=[{"field": "language", "message": message}])
        return known, self._languages[known]


def read_table(path: Path | None = None) -> LanguageTable:
    """Return the built-in table with the languages of the file `path` on top.

    A language that both have keeps the fields that the file does not give.

    Raises:
        SettingsInvalid: the file cannot be read, or is faulty; tells all faults.
    """
    built_in = _read_built_in()
    if path is None:
        return _new_table(built_in, frozenset(), "languages.toml")
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise SettingsInvalid(f"{VARIABLE}: {path}: {error.strerror}") from None
    if len(raw) > MAX_FILE_BYTES:
        raise SettingsInvalid(f"{VARIABLE}: {path}: is larger than 1 MiB")
    rows = _parse(raw, str(path))
    merged = dict(built_in)
    for name, row in rows.items():
        merged[name] = {**built_in.get(name, {}), **row}
    return _new_table(merged, frozenset(rows), str(path))


@cache
def _read_built_in() -> dict[str, dict[str, Any]]:
    return _parse((files("sandfleet.languages") / "languages.toml").read_bytes(), "languages.toml")


def _parse(raw: bytes, source: str) -> dict[str, dict[str, Any]]:
    try:
        found = tomllib.loads(raw.decode())
    except ValueError as error:  # UnicodeDecodeError is one, too
        raise SettingsInvalid(f"{VARIABLE}: {source}: is not TOML: {error}") from None
    faults = [
        f"[{ascii(name[:64])[1:-1]}]: must be a table with the fields of a language"
        if LANGUAGE_NAME.fullmatch(name)
        else f"[{ascii(name[:64])[1:-1]}]: is no name of a language: lower-case letters, digits and any of _ . + # -"
        for name, row in found.items()
        if not isinstance(row, dict) or not LANGUAGE_NAME.fullmatch(name)
    ]
    if len(found) > MAX_LANGUAGES:
        faults.append(f"has {len(found)} languages, the limit is {MAX_LANGUAGES}")
    if faults:
        raise SettingsInvalid(f"{VARIABLE}: {source}: {'; '.join(faults)}")
    return cast("dict[str, dict[str, Any]]", found)


def _new_table(rows: Mapping[str, Mapping[str, Any]], changed: frozenset[str], source: str) -> LanguageTable:
    languages: dict[str, Language] = {}
    faults: list[str] = []
    for name, row in rows.items():
        try:
            languages[name] = Language.model_validate(row)
        except ValidationError as error:
            found = [fault for fault, _ in describe_faults(error, Language)]
            faults += [
                f"[{name}] {'' if fault['field'] == 'spec' else fault['field'] + ' '}{fault['message']}"
                for fault in found
            ]
    if faults:
        raise SettingsInvalid(f"{VARIABLE}: {source}: {'; '.join(faults)}")
    return LanguageTable(languages, changed)
