"""The blocks of code in README and docs, and which of them a test runs.

An invisible comment just before a block says what a test does with it:

    <!-- not run: needs docker -->   nothing; tests/docs/not_run.txt lists all of them
    <!-- file: jobs.jsonl -->        write it to this file, beside the later blocks of the page
    <!-- output -->                  compare it with what the Python block before printed
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sybil import Document
from sybil.parsers.markdown.lexers import RawFencedCodeBlockLexer

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    *ROOT.glob("CONTRIBUTING.md"),
    *sorted(ROOT.glob("[a-z]*/README.md")),
    *sorted(ROOT.glob("docs/**/*.md")),
]
NOT_RUN_LIST = ROOT / "tests/docs/not_run.txt"
RUN_LANGUAGES = ("python", "console", "sh", "bash")
LANGUAGES = (*RUN_LANGUAGES, "text", "json", "toml", "yaml", "ini", "c", "mermaid", "{toctree}")
REMARK = re.compile(r"<!-- *([^>]*?) *-->\s*$")
LINE_OF_REMARK = re.compile(r"^ *<!-- *(?:not run:|file:|output\b)[^>]*--> *$", re.MULTILINE)
NOT_RUN, FILE, OUTPUT = "not run:", "file:", "output"


@dataclass(frozen=True)
class Block:
    """One block of code of a page, with the remark before it."""

    page: str
    line: int
    language: str
    text: str
    remark: str

    @property
    def place(self) -> str:
        """Where it is, for people."""
        return f"{self.page}:{self.line}"

    @property
    def why_not_run(self) -> str:
        """The reason for which no test runs it, or nothing."""
        return self._after(NOT_RUN)

    @property
    def file(self) -> str:
        """The file that it is the content of, or nothing."""
        return self._after(FILE)

    @property
    def is_output(self) -> bool:
        """Whether it shows what the block before printed."""
        return self.remark == OUTPUT

    @property
    def is_run(self) -> bool:
        """Whether a test runs it."""
        return self.language in RUN_LANGUAGES and not (self.why_not_run or self.file or self.is_output)

    def _after(self, prefix: str) -> str:
        return self.remark.removeprefix(prefix).strip() if self.remark.startswith(prefix) else ""


def read_blocks(page: Path) -> Iterator[Block]:
    """Yield the blocks of a page in their order; `language` is empty if the fence names none."""
    document = Document(page.read_text(), str(page))
    lexer = RawFencedCodeBlockLexer(re.compile(r"(?P<language>[^\n]*)\n"))
    for region in sorted(lexer(document), key=lambda region: region.start):
        before = REMARK.search(document.text[: region.start])
        line = document.text.count("\n", 0, region.start) + 1
        language, text = (str(region.lexemes[key]) for key in ("language", "source"))
        yield Block(_name(page), line, language.strip(), text, before[1] if before else "")


def find_faults(page: Path) -> Iterator[str]:
    """Yield each fence that names no known language, and each remark that is before no block.

    A test would pass over both, and nobody would notice.
    """
    blocks = list(read_blocks(page))
    for block in blocks:
        if block.language not in LANGUAGES:
            yield f"{block.place}: the fence names none of {', '.join(LANGUAGES)}"
    text = page.read_text()
    lines = text.split("\n")
    for remark in LINE_OF_REMARK.finditer(text):
        line = text.count("\n", 0, remark.start()) + 1
        # `line` counts from 1, so this is the line after the remark.
        following = next((number for number, words in enumerate(lines[line:], line + 1) if words.strip()), 0)
        if following not in {block.line for block in blocks}:
            yield f"{_name(page)}:{line}: no block follows {remark[0].strip()}"


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT)) if page.is_relative_to(ROOT) else page.name


def new_not_run_list() -> str:
    """Return the list of the blocks that no test runs, a line each."""
    blocks = [block for page in PAGES for block in read_blocks(page) if block.why_not_run]
    lines = sorted(f"{block.page}: {block.why_not_run}" for block in blocks)
    head = (
        "# The blocks of README and docs that no test runs, and why. To renew: python tests/support/pages.py --write\n"
    )
    return head + "".join(f"{line}\n" for line in lines)


if __name__ == "__main__":
    if "--write" in sys.argv[1:]:
        NOT_RUN_LIST.write_text(new_not_run_list())
    else:
        sys.stdout.write(new_not_run_list())
