"""The page "it ended as X, what now?" has one section for each error code."""

from __future__ import annotations

import re
from pathlib import Path

from sandfleet_config.codes import ErrorCode

PAGE = Path(__file__).parents[2] / "docs/how-to/what-now.md"


def test_each_code_has_one_section() -> None:
    sections = re.findall(r"^## `([A-Z_]+)`$", PAGE.read_text(), re.MULTILINE)
    assert sections == [code.value for code in ErrorCode]
