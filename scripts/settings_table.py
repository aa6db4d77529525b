"""Print the table of settings, or put it into its page with --write."""

from __future__ import annotations

from pathlib import Path

from generated import print_or_write, replace_part
from sandfleet_config.settings import Settings, setting_names
from sandfleet_config.web_settings import WebSettings

PAGE = Path(__file__).parent.parent / "docs/reference/settings.md"
BEGIN, END = "<!-- settings:begin -->", "<!-- settings:end -->"


def new_table() -> str:
    """Return the table as Markdown."""
    shared = {name for name, *_ in setting_names(Settings)}
    workers = {name: row for name, *row in setting_names()}
    webs = {name: row for name, *row in setting_names(WebSettings) if name not in workers}
    rows = ["| variable | read by | default | what it is |", "|---|---|---|---|"]
    for name, (_, default, description) in (workers | webs).items():
        readers = "both" if name in shared else "worker" if name in workers else "web"
        rows.append(f"| `{name}` | {readers} | {show(default)} | {description} |")
    return "\n".join(rows)


def show(default: object) -> str:
    """Return a default as people would type it."""
    if isinstance(default, frozenset | tuple):
        default = ",".join(sorted(map(str, default)))
    text = "" if default == {} else str(default)
    return f"`{text}`" if text and not text.startswith("the ") else text


def rewrite(text: str) -> str:
    """Return the page's text with the table of today."""
    return replace_part(text, BEGIN, END, new_table())


if __name__ == "__main__":
    print_or_write(PAGE, new_table, rewrite)
