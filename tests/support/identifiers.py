"""The names in the code, and those that the glossary does not want.

python tests/support/identifiers.py            lists them, with the word to use instead
python tests/support/identifiers.py --write    renews the list of what is left; it may only shrink
"""

from __future__ import annotations

import ast
import re
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
GLOSSARY = ROOT / "docs/reference/glossary.md"
LEFT = ROOT / "tests/docs/identifiers_left.txt"
SOURCES = ("config", "producer", "worker", "web")
ROW = re.compile(r"^\| `(\w+)` \| (part|name|part, but after `(\w+)`) \| (.+) \|$", re.MULTILINE)
LUA = re.compile(
    r"local function (\w+) *\(([\w, ]*)\)|function *\(([\w, ]*)\)|local ([\w, ]+)|for ([\w, ]+) in|for (\w+) ="
)
LUA_KEY = re.compile(r"prefix \.\. '([a-z_-]+)")


class Rule(NamedTuple):
    """A word of the glossary that names do not use."""

    word: str
    is_whole: bool
    after: str
    instead: str

    def refuses(self, name: str) -> bool:
        """Whether `name` uses the word as it must not."""
        parts = split_name(name)
        if self.is_whole:
            return parts == [self.word]
        before = [None, *parts]
        return any(
            part == self.word and (not self.after or before[index] != self.after) for index, part in enumerate(parts)
        )


def read_rules() -> list[Rule]:
    """Return the glossary's rules."""
    rows = ROW.finditer(GLOSSARY.read_text())
    return [Rule(row[1], row[2] == "name", row[3] or "", row[4]) for row in rows]


def split_name(name: str) -> list[str]:
    """Return the words of a name in snake or camel case."""
    return [word.lower() for word in re.split(r"[_-]+|(?<=[a-z0-9])(?=[A-Z])", name) if word]


def find_names(path: Path) -> set[str]:
    """Return what a file gives a name to, and its own name."""
    names = set(_find_lua_names(path.read_text()) if path.suffix == ".lua" else _find_python_names(path.read_text()))
    return names | {path.stem}


def _find_python_names(text: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.arg(arg=name) | ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield name
            case ast.alias(asname=str(name)):
                yield name
            case _:
                pass


def _find_lua_names(text: str) -> Iterator[str]:
    code = re.sub(r"--.*", "", text)
    for groups in LUA.findall(code):
        yield from re.findall(r"\w+", " ".join(groups))
    yield from LUA_KEY.findall(code)


@cache
def find_hits() -> dict[str, dict[str, str]]:
    """Return, by module, the names that the glossary does not want, and what it wants instead."""
    rules = read_rules()
    hits: dict[str, dict[str, str]] = {}
    for source in SOURCES:
        for path in sorted([*(ROOT / source).rglob("*.py"), *(ROOT / source).rglob("*.lua")]):
            found = {name: rule.instead for name in sorted(find_names(path)) for rule in rules if rule.refuses(name)}
            if found:
                hits[str(path.relative_to(ROOT))] = found
    return hits


def read_left() -> dict[str, set[str]]:
    """Return the names that are still to be changed, for each module."""
    lines = [line.partition(": ") for line in LEFT.read_text().splitlines() if line and not line.startswith("#")]
    return {module: set(names.split(", ")) for module, _, names in lines}


def new_left() -> str:
    """Return the list of today."""
    head = "# Names that the glossary does not want, still to be changed. To renew: python tests/support/identifiers.py --write\n"
    return head + "".join(f"{module}: {', '.join(names)}\n" for module, names in find_hits().items())


def main() -> None:
    """List what is found, or renew the list of what is left."""
    hits = find_hits()
    if "--write" in sys.argv[1:]:
        before, now = (sum(map(len, found.values())) for found in (read_left(), hits))
        if now > before:
            sys.exit(f"{now} names that the glossary does not want, {before} before: rename the new ones")
        LEFT.write_text(new_left())
    else:
        for module, names in hits.items():
            for name, instead in names.items():
                print(f"{module}: {name}: {instead}")  # noqa: T201  a program


if __name__ == "__main__":
    main()
