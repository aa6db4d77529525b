"""Names of preparations, and of the modules that they import. Pure: no I/O."""

from __future__ import annotations

import re
from typing import Final

NEVER_PREPARED: Final = "off"
"""The value of a spec's `prepared` for a job that is never given a prepared spare."""
MAX_MODULES: Final = 64
PREPARATION_NAME: Final = r"[a-z0-9][a-z0-9._-]{0,63}"
_NAME: Final = re.compile(PREPARATION_NAME)
_MODULE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*")
_MAX_MODULE_CHARS: Final = 200


def is_preparation_name(text: str) -> bool:
    """Whether an operator can call a preparation so; `off` is not one."""
    return text != NEVER_PREPARED and _NAME.fullmatch(text) is not None


def is_module(text: str) -> bool:
    """Whether `text` is a module's name as `import` takes it, in ASCII."""
    return len(text) <= _MAX_MODULE_CHARS and _MODULE.fullmatch(text) is not None
