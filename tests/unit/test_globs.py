"""Which paths a pattern of artifacts names, and that no pattern takes long."""

from __future__ import annotations

import fnmatch
import time

import pytest
from rows import each_row
from sandfleet_worker.sandbox.process.globs import Glob


@each_row(
    ("pattern", "named", "others"),
    [
        ("a", ["a"], ["b", "a/b", "aa"]),
        ("*.png", ["a.png", ".png"], ["a/b.png", "a.pn", "a.png/b"]),
        ("out/*.png", ["out/a.png"], ["a.png", "out/b/a.png"]),
        ("**/*.png", ["a.png", "x/a.png", "x/y/z/a.png"], ["x/a.pn"]),
        ("out/**/*.png", ["out/a.png", "out/x/y/a.png"], ["a.png", "xout/a.png"]),
        ("out/**", ["out/a", "out/x/y", "out/.hidden"], ["out", "other/a"]),
        ("out/", ["out/a", "out/x/y"], ["out", "outer/a"]),
        ("**", ["a", "a/b/c"], []),
        ("**/**/a", ["a", "x/y/a"], ["b"]),
        ("a/**/b/**/c", ["a/b/c", "a/x/b/y/z/c"], ["a/c", "a/b"]),
        ("[ab]?", ["ax", "by"], ["cx", "a"]),
        ("[!a]", ["b"], ["a"]),
        ("a[", ["a["], ["a"]),
        ("./a//b", ["a/b"], ["b"]),
        ("A", ["A"], ["a"]),
        ("a**", ["a", "ab"], ["a/b"]),
        ("x\n*", ["x\ny"], ["x"]),
    ],
)
def test_a_pattern_names_these_paths(pattern: str, named: list[str], others: list[str]) -> None:
    glob = Glob(pattern)
    assert [path for path in named if not glob.matches(path)] == []
    assert [path for path in others if glob.matches(path)] == []


@each_row(
    ("pattern", "folder", "depth"),
    [
        ("a", "", 1),
        ("out/a", "out", 1),
        ("out/x/*.png", "out/x", 1),
        ("out/*/x/*.png", "out", 3),
        ("out/**", "out", None),
        ("out/", "out", None),
        ("**/a", "", None),
    ],
)
def test_only_folders_where_matches_can_be_are_listed(pattern: str, folder: str, depth: int | None) -> None:
    glob = Glob(pattern)
    assert (glob.folder, glob.depth) == (folder, depth)


@each_row("pattern", ["../a", "a/../b", "..", "a\0b"])
def test_a_pattern_that_could_lead_elsewhere_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"neither \.\. nor a zero byte"):
        Glob(pattern)


@each_row("pattern", ["[" * 4000, "[!" * 2000, "[a-" * 1300])
def test_brackets_that_nothing_closes_are_plain_and_take_no_time(pattern: str) -> None:
    began = time.process_time()
    glob = Glob(pattern)
    assert time.process_time() - began < 0.5
    assert glob.matches(pattern)


@each_row("pattern", ["[!]-![", "a[", "[]", "[!]", "[]]", "[^a]", "[a-", "*[", "][", "[[]"])
def test_brackets_mean_what_they_mean_to_fnmatch(pattern: str) -> None:
    glob = Glob(pattern)
    for name in ("[!]-![", "a[", "[]", "[!]", "]", "b", "[a-", "x[", "][", "[", "-"):
        assert glob.matches(name) is fnmatch.fnmatchcase(name, pattern)


@each_row(
    ("pattern", "path"),
    [
        ("*a" * 500 + "b", "a" * 255),
        ("**/*a/" * 60 + "b", "/".join(["a"] * 60)),
        ("**/**/" * 300 + "b", "/".join(["a"] * 60)),
        ("[a-z]*" * 200 + "0", "a" * 255),
        ("?*" * 400, "a" * 255),
    ],
)
def test_a_pattern_that_would_take_minutes_by_backtracking_takes_none(pattern: str, path: str) -> None:
    glob = Glob(pattern)
    began = time.process_time()
    for _ in range(20):
        assert not glob.matches(path)
    assert time.process_time() - began < 2
