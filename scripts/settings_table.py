"""Print the table of settings, or put it into its page with --write."""

from __future__ import annotations

from pathlib import Path

from generated import print_or_write, replace_part
from sandfleet_config.settings import Settings, setting_names

PAGE = Path(__file__).parent.parent / "docs/reference/settings.md"
BEGIN, END = "<!-- settings:begin -->", "<!-- settings:end -->"


def new_table() -> str:
    """Return the table as Markdown."""
    shared = {name for name, *_ in setting_names(Settings)}
    rows = ["| variable | read by | default | what it is |", "|---|---|---|---|"]
    for name, _, default, description in setting_names():
        readers = "both" if name in shared else "worker"
        rows.append(f"| `{name}` | {readers} | {show(default)} | {description} |")
    return "\n".join(rows)


def show(default: object) -> str:
    """Return a default as people would type it."""
    if isinstance(default, frozenset | tuple):
        default = ",".join(sorted(map(str, default)))
    text = str(default)
    return f"`{text}`" if text and not text.startswith("the ") else text


def rewrite(text: str) -> str:
    """Return the page's text with the table of today."""
    return replace_part(text, BEGIN, END, new_table())


if __name__ == "__main__":
    print_or_write(PAGE, new_table, rewrite)
