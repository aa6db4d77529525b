"""How long modules and functions are, and which public names have no docstring.

python tests/support/measures.py            lists what is over a bound
python tests/support/measures.py --write    renews the lists of what is left, which may only shrink
"""

from __future__ import annotations

import ast
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from lua_functions import find_lua_functions

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
LEFT = ROOT / "tests/docs/sizes_left.txt"
UNDOCUMENTED_LEFT = ROOT / "tests/docs/docstrings_left.txt"
SOURCES = ("config", "producer", "worker", "web")
SUFFIXES = (".py", ".lua", ".c", ".h")
MAX_MODULE_LINES = 300
MAX_FUNCTION_LINES = 40
FREE = {"worker/sandfleet_worker/sandbox/native/init.c"}
"""A program in one file: what stays in the sandbox can be read from top to bottom."""
Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def find_sources() -> list[Path]:
    """Return the files of the four distributions."""
    return sorted(path for source in SOURCES for path in (ROOT / source).rglob("*") if path.suffix in SUFFIXES)


@cache
def find_long() -> dict[str, int]:
    """Return the lines of each module or function over its bound, by `path` or `path: function`."""
    found: dict[str, int] = {}
    for path in find_sources():
        name, text = str(path.relative_to(ROOT)), path.read_text()
        if (lines := len(text.splitlines())) > MAX_MODULE_LINES and name not in FREE:
            found[name] = lines
        find = {".py": find_long_functions, ".lua": find_long_lua_functions}.get(path.suffix)
        found |= {f"{name}: {function}": lines for function, lines in (find(text) if find is not None else ())}
    return found


def find_long_functions(text: str) -> Iterator[tuple[str, int]]:
    """Yield each function that is too long, with its lines; its decorators do not count."""
    for name, node in _walk(ast.parse(text)):
        if (
            isinstance(node, Function)
            and (lines := (node.end_lineno or node.lineno) - node.lineno + 1) > MAX_FUNCTION_LINES
        ):
            yield name, lines


def find_long_lua_functions(text: str) -> Iterator[tuple[str, int]]:
    """Yield each function of a script that is too long, with its lines.

    Functions inside it are measured by themselves: a constructor has no lines but its own.
    """
    for function in find_lua_functions(text):
        if function.own_lines > MAX_FUNCTION_LINES:
            yield function.name or f"line {function.first_line}", function.own_lines


def find_undocumented(text: str) -> Iterator[str]:
    """Yield public classes, functions and methods without a docstring; `module` if it has none.

    What Python itself documents (`__enter__`), and a second signature or a setter of a name, needs
    none.
    """
    tree = ast.parse(text)
    if tree.body and ast.get_docstring(tree) is None:
        yield "module"
    for name, node in _walk(tree):
        is_private = any(part.startswith("_") for part in name.split("."))
        if is_private or "<locals>" in name or _is_second(node):
            continue
        if ast.get_docstring(node) is None:
            yield name


@cache
def find_all_undocumented() -> set[str]:
    """Return `path: name` of each public name of the distributions without a docstring."""
    paths = [path for path in find_sources() if path.suffix == ".py"]
    return {f"{path.relative_to(ROOT)}: {name}" for path in paths for name in find_undocumented(path.read_text())}


def _is_second(node: Function | ast.ClassDef) -> bool:
    words = [ast.unparse(decorator).rpartition(".")[2] for decorator in node.decorator_list]
    return any(word in {"overload", "setter", "override"} for word in words)


def _walk(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, Function | ast.ClassDef]]:
    """Yield each class and function with its qualified name."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function | ast.ClassDef):
            name = f"{prefix}{child.name}"
            yield name, child
            yield from _walk(child, f"{name}." if isinstance(child, ast.ClassDef) else f"{name}.<locals>.")
        else:
            yield from _walk(child, prefix)


def read_left() -> dict[str, int]:
    """Return the sizes that are still over a bound, as the list has them."""
    lines = [line.rpartition(" ") for line in LEFT.read_text().splitlines() if line and not line.startswith("#")]
    return {name: int(size) for name, _, size in lines}


def read_undocumented_left() -> set[str]:
    """Return the names that still need a docstring, as the list has them."""
    return {line for line in UNDOCUMENTED_LEFT.read_text().splitlines() if line and not line.startswith("#")}


RENEW = "To renew: python tests/support/measures.py --write"


def main() -> None:
    """List what is over a bound or has no docstring, or renew the lists of what is left."""
    sizes = [f"{name} {lines}\n" for name, lines in find_long().items()]
    names = [f"{name}\n" for name in sorted(find_all_undocumented())]
    if "--write" not in sys.argv[1:]:
        sys.stdout.writelines([*sizes, *names])
        return
    before, now = (sum(found.values()) for found in (read_left(), find_long()))
    if now > before or len(names) > len(read_undocumented_left()):
        sys.exit("there is more of it than before: split what is new and too long, document what is new")
    LEFT.write_text(f"# Modules over 300 lines and functions over 40, still to be split. {RENEW}\n" + "".join(sizes))
    UNDOCUMENTED_LEFT.write_text(f"# Public names that still need a docstring. {RENEW}\n" + "".join(names))


if __name__ == "__main__":
    main()
