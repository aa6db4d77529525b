"""The text of the bootstrap as it is given to `python3 -c`: all files, without docstrings."""

import ast
import functools
from importlib import resources
from typing import Final

PACKAGE: Final = f"{__package__}.bootstrap"
FILES: Final = (
    "checks",
    "put_away",
    "finalizers",
    "request",
    "process",
    "c_api",
    "command_text",
    "errors",
    "job",
    "command",
    "main",
)
"""Each uses only names of those before it."""


@functools.cache
def source() -> str:
    """Return the program, at a quarter less than its files' length; one argument of exec may have 128 KiB."""
    folder = resources.files(PACKAGE)
    trees = [ast.parse(folder.joinpath(f"{name}.py").read_text(encoding="utf-8")) for name in FILES]
    nodes = [node for tree in trees for node in tree.body if not _is_left_out(node)]
    joined = ast.Module(nodes, type_ignores=[])
    for node in ast.walk(joined):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, clean=False):
            node.body[0] = ast.Pass()
    return ast.unparse(ast.fix_missing_locations(joined)) + "\nmain()\n"


def _is_left_out(node: ast.stmt) -> bool:
    """Whether a statement says nothing to the joined program: text, or the import of another of its files."""
    is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return is_text or (isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE))
