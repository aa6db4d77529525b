"""Names of the worker that an earlier release has in another module.

`redis_use` measures such a release in its own environment.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any


def find_name(name: str, *modules: str) -> Any:
    """Return `name` from the first of the worker's `modules` that this release has.

    Raises:
        ModuleNotFoundError: it has none of them.
    """
    for module in modules[:-1]:
        try:
            return getattr(import_module(f"sandfleet_worker.{module}"), name)
        except ModuleNotFoundError:
            continue
    return getattr(import_module(f"sandfleet_worker.{modules[-1]}"), name)
