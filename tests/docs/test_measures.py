"""No module is too long, no function is too long, no public name lacks a docstring."""

from __future__ import annotations

import pytest
from measures import (
    MAX_FUNCTION_LINES,
    find_all_undocumented,
    find_long,
    find_long_functions,
    find_long_lua_functions,
    find_undocumented,
    read_left,
    read_undocumented_left,
)

RENEW = "it is done: run python tests/support/measures.py --write"


def test_no_module_and_no_function_is_too_long() -> None:
    left = read_left()
    assert {name: lines for name, lines in find_long().items() if lines > left.get(name, 0)} == {}, (
        "a module has at most 300 lines, a function 40"
    )


def test_what_is_still_too_long_is_in_the_list_only_as_long_as_it_is() -> None:
    assert set(read_left()) - set(find_long()) == set(), RENEW


def test_each_public_name_has_a_docstring() -> None:
    assert find_all_undocumented() - read_undocumented_left() == set()
    assert read_undocumented_left() - find_all_undocumented() == set(), RENEW


def test_a_long_function_is_found() -> None:
    lines = "    pass\n" * MAX_FUNCTION_LINES
    text = f"class A:\n    def b(self):\n{lines.replace('    ', '        ')}\n\n@x\ndef c():\n{lines[9:]}"
    assert list(find_long_functions(text)) == [("A.b", MAX_FUNCTION_LINES + 1)]


def test_a_long_function_of_a_script_is_found() -> None:
    line = "if x then y() else repeat y(function() return 'do' end) until z end -- if\n"
    lines = line * (MAX_FUNCTION_LINES - 2)
    text = (
        f"local function short()\n{lines}end\n"
        f"local function long()\n{lines}{line}end\n"
        f"local function new_thing()\nfunction thing.call()\nfor x in y do\nend\nend\n{lines}end\n"
        f"local f = function()\n{lines}{line}end\n"
    )
    first = text[: text.index("local f =")].count("\n") + 1
    too_long = MAX_FUNCTION_LINES + 1
    assert list(find_long_lua_functions(text)) == [("long", too_long), (f"line {first}", too_long)]
    with pytest.raises(ValueError, match="1 blocks have no end"):
        list(find_long_lua_functions("function a() if x then end"))


def test_a_public_name_without_a_docstring_is_found() -> None:
    text = """
class A:
    def b(self): ...
    def _c(self): ...
    def __enter__(self): ...
    @b.setter
    def b(self): ...
class _D:
    def e(self): ...
async def f():
    \"\"\"Say it.\"\"\"
    def inner(): ...
"""
    assert list(find_undocumented(text)) == ["module", "A", "A.b"]
    assert list(find_undocumented("")) == []
