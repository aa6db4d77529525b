"""The page "it ended as X, what now?" has one section for each error code."""

from __future__ import annotations

import re
from pathlib import Path

from advice_page import rewrite
from sandfleet_config.codes import ErrorCode

PAGE = Path(__file__).parents[2] / "docs/how-to/what-now.md"


def test_each_code_has_one_section() -> None:
    sections = re.findall(r"^## `([A-Z_]+)`$", PAGE.read_text(), re.MULTILINE)
    assert sections == [code.value for code in ErrorCode]


def test_each_section_begins_with_the_sentence_that_show_prints() -> None:
    assert rewrite(PAGE.read_text()) == PAGE.read_text(), "run python scripts/advice_page.py --write"
