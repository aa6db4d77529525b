"""Each local link of a Markdown file outside the site leads to a file, and to a heading in it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("[a-z]*/README.md"), *ROOT.glob(".github/**/*.md"), *ROOT.glob("docs/**/*.md")]
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCED = re.compile(r"^(`{3,}).*?^\1", re.DOTALL | re.MULTILINE)


def read_prose(page: Path) -> str:
    """Return the text of a page without its blocks of code."""
    return FENCED.sub("", page.read_text())


def find_anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them, and those written as HTML."""
    text = read_prose(page)
    headings = re.findall(r"^#+ +(.*?) *#*$", text, re.MULTILINE)
    return {new_anchor(heading) for heading in headings} | set(re.findall(r'<a (?:id|name)="([^"]+)"', text))


def new_anchor(heading: str) -> str:
    """Return the anchor of a heading."""
    shown = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")


def find_dead_links(page: Path) -> list[str]:
    """Return the local links of a page that lead nowhere."""
    dead = []
    for link in LINK.findall(re.sub(r"`[^`]*`", "", read_prose(page))):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        is_missing = not target.exists() or (anchor and target.suffix == ".md" and anchor not in find_anchors(target))
        if is_missing:
            dead.append(link)
    return dead


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_local_link_leads_somewhere(page: Path) -> None:
    assert find_dead_links(page) == []


def test_a_dead_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# A heading: with `code`\n\n```sh\n# no heading\n```\n")
    page = tmp_path / "page.md"
    alive = "[a](other.md#a-heading-with-code) [b](other.md) [c](https://example.com) `[d](no.md)`"
    page.write_text(f"{alive} [e](gone.md) [f](other.md#no-heading) [g](#nowhere)\n")
    assert find_dead_links(page) == ["gone.md", "other.md#no-heading", "#nowhere"]
