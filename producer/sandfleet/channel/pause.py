"""A pause of Python's cyclic garbage collector while many objects are made and none of them is garbage yet.

An outcome is a dozen tracked objects. Left alone, the collector starts again and again while a chunk of them is parsed and
goes over all that the process holds: measured, that takes up to twice as long as the parsing.
"""

from __future__ import annotations

import gc
import os
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator


@dataclass
class _State:
    """Of this process: the collector is the process's too."""

    is_paused: bool = False


_state = _State()


@contextmanager
def collector_paused() -> Generator[None]:
    """Keep the collector from starting; a millisecond as a rule, and not where somebody has switched it off already."""
    if not gc.isenabled():
        yield
        return
    _state.is_paused = True
    gc.disable()
    try:
        yield
    finally:
        # Two threads may overlap: then the first one resumes for both, which costs the other time and nothing else.
        gc.enable()
        _state.is_paused = False


def _resume_in_child() -> None:
    """Switch it on in a child that was forked meanwhile by another thread: the one that would is not there."""
    if _state.is_paused:
        gc.enable()
        _state.is_paused = False


os.register_at_fork(after_in_child=_resume_in_child)
