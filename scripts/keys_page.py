"""Print the table of Redis keys from `sandfleet_config.scripts`, or put it into its page.

The page is written with --write. The table is the docstring of that module.
"""

from __future__ import annotations

import re
from pathlib import Path

from generated import print_or_write, replace_part
from sandfleet_config import scripts
from sandfleet_config.queues import KEY_PREFIX

PAGE = Path(__file__).parent.parent / "docs/reference/redis-keys.md"
BEGIN, END = "<!-- keys:begin -->", "<!-- keys:end -->"
ROW = re.compile(r" {4}([^\s,]+(?:, [^\s,]+)*) +(.*)$")


def read_keys() -> list[tuple[str, str]]:
    """Return each key, or group of them, with what it is."""
    block = (scripts.__doc__ or "").partition("Keys, all under")[2]
    found: list[tuple[str, str]] = []
    for line in block.splitlines()[1:]:
        if row := ROW.match(line):
            found.append((row[1], row[2]))
        elif line.strip():
            name, text = found[-1]
            found[-1] = (name, f"{text} {line.strip()}")
    return found


def new_table() -> str:
    """Return the table as Markdown."""
    rows = [f"| key, after `{KEY_PREFIX}` | what it is |", "|---|---|"]
    for name, text in read_keys():
        shown = text.replace("|", "\\|").replace("<", "&lt;").replace("`", "")
        keys = ", ".join(f"`{key}`" for key in name.split(", "))
        rows.append(f"| {keys} | {shown} |")
    return "\n".join(rows)


def rewrite(text: str) -> str:
    """Return the page's text with the table of today."""
    return replace_part(text, BEGIN, END, new_table())


if __name__ == "__main__":
    print_or_write(PAGE, new_table, rewrite)
