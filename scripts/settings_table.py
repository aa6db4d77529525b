"""Print the README's table of settings, or put it there with --write."""

from __future__ import annotations

import sys
from pathlib import Path

from sandfleet_config.settings import setting_names

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- settings:begin -->", "<!-- settings:end -->"


def new_table() -> str:
    """Return the table as Markdown."""
    rows = ["| variable | default | what it is |", "|---|---|---|"]
    rows += [f"| `{name}` | {show(default)} | {description} |" for name, _, default, description in setting_names()]
    return "\n".join(rows)


def show(default: object) -> str:
    """Return a default as people would type it."""
    if isinstance(default, frozenset | tuple):
        default = ",".join(sorted(map(str, default)))
    text = str(default)
    return f"`{text}`" if text and not text.startswith("the ") else text


def rewrite(text: str) -> str:
    """Return the README's text with the table of today."""
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{new_table()}\n{END}{tail}"


if __name__ == "__main__":
    if "--write" in sys.argv[1:]:
        README.write_text(rewrite(README.read_text()))
    else:
        print(new_table())
