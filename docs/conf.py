"""The docs site: `make docs` builds it, and each warning fails the build."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from pygments.lexers.special import TextLexer

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "sandfleet"
html_title = "sandfleet"
extensions = ["myst_parser"]
html_theme = "furo"  # fonts of the system, scripts in the build: a page asks no other address for anything
nitpicky = True

html_show_sphinx = False
html_copy_source = False

# A link to `page.md#heading` is checked too.
myst_heading_anchors = 4


def is_told(record: logging.LogRecord) -> bool:
    """Keep each warning but one: the index orders pages by patterns, some of which match none."""
    return getattr(record, "subtype", None) != "empty_glob"


def setup(app: Sphinx) -> None:
    """Show Mermaid's diagrams as text: GitHub draws them, and their script is on another host."""
    app.add_lexer("mermaid", TextLexer)
    logging.getLogger("sphinx.sphinx.directives.other").addFilter(is_told)
