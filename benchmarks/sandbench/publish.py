"""Write tables and pictures of the last run into README and docs, between their markers."""

from __future__ import annotations

import re
import shutil
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from sandbench.tables import render_blocks

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sandbench.figures import Figures

ROOT = Path(__file__).parents[2]
DOCUMENTS = ("README.md", "docs/explanation/performance.md", "docs/explanation/scaling.md")
PICTURES = "docs/explanation/img"
MARKED = re.compile(r"<!-- bench:(?P<name>[a-z]+):begin -->\n.*?<!-- bench:(?P=name):end -->", re.DOTALL)
NOT_MEASURED = "(not measured in this run)"
COLUMNS = 100


def fill(text: str, blocks: Mapping[str, str]) -> str:
    """Return `text` with each marked block as it is in `blocks`.

    Raises:
        KeyError: a marker names no block.
    """

    def replace(match: re.Match[str]) -> str:
        name = match["name"]
        block = "\n".join(_wrap(line) for line in (blocks[name] or NOT_MEASURED).splitlines())
        return f"<!-- bench:{name}:begin -->\n{block}\n<!-- bench:{name}:end -->"

    return MARKED.sub(replace, text)


def _wrap(line: str) -> str:
    """Wrap a paragraph or an item of a list, as the prose around it; a row of a table stays."""
    if len(line) <= COLUMNS or line.startswith("|"):
        return line
    indent = "  " if line.startswith("- ") else ""
    return textwrap.fill(line, COLUMNS, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def publish(figures: Figures, results: Path, root: Path = ROOT) -> list[Path]:
    """Rewrite the documents and copy the pictures; return what was written."""
    blocks = render_blocks(figures)
    written = []
    for name in DOCUMENTS:
        path = root / name
        path.write_text(fill(path.read_text(), blocks))
        written.append(path)
    folder = root / PICTURES
    folder.mkdir(parents=True, exist_ok=True)
    pictures = sorted(results.glob("*.png"))
    # The raw figures too: the tables can be made again from them when a report changes.
    written.append(Path(shutil.copy(results / "latest.json", folder / "bench.json")))
    return written + [Path(shutil.copy(picture, folder / f"bench-{picture.name}")) for picture in pictures]
