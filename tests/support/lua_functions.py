"""Functions of Lua scripts, and how long they are."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

TOKEN = re.compile(
    r"--\[\[.*?\]\]|--[^\n]*"  # comments
    r"|'(?:\\.|[^'\\\n])*'|\"(?:\\.|[^\"\\\n])*\"|\[\[.*?\]\]"  # texts
    r"|\bfunction\s+(?P<name>[\w.:]+)|\b(?P<word>function|if|do|repeat|end|until)\b|\n",
    re.DOTALL,
)
"""Words that begin or end a block, and comments and texts, in which they do not.

`for` and `while` begin theirs with `do`.
"""


@dataclass
class LuaFunction:
    """A function, and how many of its lines are those of functions inside it; the name may be empty."""

    name: str
    first_line: int
    last_line: int = 0
    inner_lines: int = 0

    @property
    def lines(self) -> int:
        """All lines from `function` to `end`."""
        return self.last_line - self.first_line + 1

    @property
    def own_lines(self) -> int:
        """The lines without those of named functions inside it, which are measured by themselves."""
        return self.lines - self.inner_lines


def find_lua_functions(text: str) -> Iterator[LuaFunction]:
    """Yield the functions of a script, by the nesting of its blocks; inner ones come first.

    Raises:
        ValueError: a block has no end.
    """
    line = 1
    blocks: list[LuaFunction | None] = []  # None: a block that is no function
    for token in TOKEN.finditer(text):
        if token["name"] or token["word"] == "function":
            blocks.append(LuaFunction(token["name"] or "", line))
        elif token["word"] in {"if", "do", "repeat"}:
            blocks.append(None)
        elif token["word"] and (function := blocks.pop()) is not None:
            function.last_line = line
            outer = next((block for block in reversed(blocks) if block is not None), None)
            if outer is not None and function.name:
                outer.inner_lines += function.lines
            yield function
        line += token[0].count("\n")
    if blocks:
        msg = f"{len(blocks)} blocks have no end"
        raise ValueError(msg)
