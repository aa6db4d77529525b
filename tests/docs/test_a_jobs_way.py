"""The page of a job's way names files, functions and scripts that exist, in at most ten stops."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/explanation/a-jobs-way.md"
ROW = re.compile(r"^\| (\d+\. [a-z]+) \| `([^`]+)` \| `([^`]+)` \| .+ \|$", re.MULTILINE)


class Stop(NamedTuple):
    """One row of the page."""

    name: str
    file: str
    function: str


STOPS = [Stop(*row) for row in ROW.findall(PAGE.read_text())]


def has_function(source: str, path: str) -> bool:
    """Whether a module defines `function`, or `Class.method`."""
    found: ast.AST = ast.parse(source)
    for name in path.split("."):
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        named = [node for node in getattr(found, "body", []) if isinstance(node, kinds) and node.name == name]
        if not named:
            return False
        found = named[0]
    return not isinstance(found, ast.ClassDef)


def test_there_are_at_most_ten_stops_and_each_row_is_one() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if re.match(r"\| *\d", line)]
    assert len(STOPS) == len(rows)
    assert [stop.name.partition(".")[0] for stop in STOPS] == [str(number) for number in range(1, len(STOPS) + 1)]
    assert 5 <= len(STOPS) <= 10


@pytest.mark.parametrize("stop", STOPS, ids=lambda stop: stop.name)
def test_file_and_function_of_a_stop_exist(stop: Stop) -> None:
    path = ROOT / stop.file
    assert path.is_file()
    assert has_function(path.read_text(), stop.function), f"{stop.file} has no {stop.function}"


def test_each_file_and_script_that_the_page_names_exists() -> None:
    text = PAGE.read_text()
    assert [
        name for name in re.findall(r"`((?:config|producer|worker|tests)/[^`]+)`", text) if not (ROOT / name).exists()
    ] == []
    scripts = {path.name for path in ROOT.glob("*/sandfleet*/**/*.lua")}
    assert set(re.findall(r"`([a-z_]+\.lua)`", text)) <= scripts


def test_a_function_that_is_not_there_is_found_missing() -> None:
    source = "class A:\n    def f(self): ...\ndef g(): ...\n"
    assert has_function(source, "A.f")
    assert has_function(source, "g")
    assert not has_function(source, "A.g")
    assert not has_function(source, "f")
    assert not has_function(source, "A")
