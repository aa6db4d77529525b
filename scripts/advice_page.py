"""Print the sentences of `sandfleet_config.advice`; with --write, put them into what-now.md."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

from generated import print_or_write
from sandfleet_config.advice import PAGE as NAME
from sandfleet_config.advice import find_advice
from sandfleet_config.codes import ErrorCode

PAGE = Path(__file__).parent.parent / NAME
SECTION = re.compile(r"^(## `([A-Z_]+)`\n\n)(?:\*\*Next:\*\* [^\n]*(?:\n[^\n]+)*\n\n)?", re.MULTILINE)


def new_sentences() -> str:
    """Return all sentences, one a line."""
    return "\n".join(f"{code.value}: {find_advice(code)}" for code in ErrorCode)


def rewrite(text: str) -> str:
    """Return the page's text with the sentences of today, each first in its section."""
    return SECTION.sub(lambda found: f"{found[1]}{_wrap(find_advice(ErrorCode(found[2])))}\n\n", text)


def _wrap(sentence: str) -> str:
    return "\n".join(textwrap.wrap(f"**Next:** {sentence}", 100, break_long_words=False, break_on_hyphens=False))


if __name__ == "__main__":
    print_or_write(PAGE, new_sentences, rewrite)
