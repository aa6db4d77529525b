"""The docs build without a warning, and what is wrong in a page is one."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
INDEX = "# Index\n\n```{toctree}\npage\n```\n"


def build(source: Path, output: Path) -> subprocess.CompletedProcess[str]:
    """Build the pages of `source` as `make docs` does."""
    options = ["-W", "--keep-going", "-n", "-q", "-b", "html", "-d", str(output / "doctrees")]
    command = [sys.executable, "-m", "sphinx", *options, str(source), str(output / "html")]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    done = build(DOCS, tmp_path)
    assert done.returncode == 0, done.stderr
    pages = {path.relative_to(DOCS).with_suffix("") for path in DOCS.rglob("*.md")}
    built = {path.relative_to(tmp_path / "html").with_suffix("") for path in (tmp_path / "html").rglob("*.html")}
    assert pages <= built


def test_the_site_asks_no_other_address_for_anything(tmp_path: Path) -> None:
    done = _build_page(tmp_path, "```python\nprint(1)\n```\n\n```mermaid\ngraph LR\n```")
    assert done.returncode == 0, done.stderr
    for page in (tmp_path / "html").glob("*.html"):
        text = page.read_text()
        assert 'src="http' not in text
        assert 'rel="stylesheet" href="http' not in text
        assert 'rel="preconnect"' not in text
    for style in (tmp_path / "html/_static").rglob("*.css"):
        assert "url(http" not in style.read_text()


def test_dead_links_missing_anchors_and_orphan_pages_fail(tmp_path: Path) -> None:
    links = "[a](nothing.md) [b](index.md#nowhere) [c](#no-heading) [d](../gone.yml) ![e](gone.png)"
    done = _build_page(tmp_path, links, "orphan.md")
    assert done.returncode != 0
    for said in ("nothing.md", "nowhere", "no-heading", "gone.yml", "gone.png", "orphan.md"):
        assert said in done.stderr


def _build_page(tmp_path: Path, text: str, *others: str) -> subprocess.CompletedProcess[str]:
    """Build a site of one page with `text`, and `others` that no page names."""
    source = tmp_path / "docs"
    source.mkdir()
    shutil.copy(DOCS / "conf.py", source)
    (source / "index.md").write_text(INDEX)
    for name in ("page.md", *others):
        (source / name).write_text(f"# Page\n\n{text}\n")
    return build(source, tmp_path)
