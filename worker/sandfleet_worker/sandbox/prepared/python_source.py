"""The text of bootstrap.py as it is given to `python3 -c`: without docstrings and comments."""

import ast
import functools
from importlib import resources


@functools.cache
def source() -> str:
    """Return the program, at a quarter less than its file's length; one argument of exec may have 128 KiB."""
    tree = ast.parse(resources.files(__package__).joinpath("bootstrap.py").read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, clean=False):
            node.body[0] = ast.Pass()
    return ast.unparse(ast.fix_missing_locations(tree)) + "\n_main()\n"
