"""The glossary names each thing once, and code uses no word that it does not want."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from identifiers import GLOSSARY, Rule, find_hits, find_names, read_left, read_rules

if TYPE_CHECKING:
    from pathlib import Path


def test_code_uses_no_word_that_the_glossary_does_not_want() -> None:
    left = read_left()
    new = {
        f"{module}: {name}": instead
        for module, names in find_hits().items()
        for name, instead in names.items()
        if name not in left.get(module, set())
    }
    assert new == {}, "use the word of docs/reference/glossary.md instead"


def test_the_list_of_what_is_left_has_no_more_than_there_is() -> None:
    hits = find_hits()
    gone = {module: names - set(hits.get(module, {})) for module, names in read_left().items()}
    assert {module: names for module, names in gone.items() if names} == {}, (
        "it is done: run python tests/support/identifiers.py --write"
    )


@pytest.mark.parametrize(
    ("name", "is_refused"),
    [("Desk", True), ("_new_desk", True), ("DESK_SIZE", True), ("desktop", False), ("DeskTop", True)],
)
def test_a_word_is_found_as_a_part_of_a_name(name: str, *, is_refused: bool) -> None:
    assert Rule("desk", is_whole=False, after="", instead="").refuses(name) == is_refused


def test_a_rule_may_be_of_a_whole_name_or_have_an_exception() -> None:
    whole = Rule("ends", is_whole=True, after="", instead="")
    assert whole.refuses("_ends")
    assert not whole.refuses("ends_at")
    letters = Rule("letters", is_whole=False, after="dead", instead="")
    assert letters.refuses("RedisLetters")
    assert not letters.refuses("redis_dead_letters")


def test_names_of_python_and_lua_are_found(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("import x as y\nclass A:\n    b = 1\n    def c(self, d):\n        self.e, f = d\n")
    assert find_names(tmp_path / "one.py") == {"one", "y", "A", "b", "c", "self", "d", "e", "f"}
    call = "redis.call('GET', prefix .. 'key:' .. e)"
    lua = f"local a, b = 1 -- local no\nlocal function c(d)\n  for e, f in ipairs(d) do {call} end\nend\n"
    (tmp_path / "two.lua").write_text(lua)
    assert find_names(tmp_path / "two.lua") == {"two", "a", "b", "c", "d", "e", "f", "key"}


def test_the_glossary_has_each_term_once_in_order() -> None:
    terms_part, rules_part = GLOSSARY.read_text().split("## Words that code does not use")
    terms = re.findall(r"^\| ([\w -]+) \| .+\. \|$", terms_part, re.MULTILINE)
    assert len(terms) == terms_part.count("\n| ") - 1
    assert len(terms) == len(set(terms)) > 50
    assert terms == sorted(terms, key=str.lower)
    assert len(read_rules()) == rules_part.count("\n| `")
