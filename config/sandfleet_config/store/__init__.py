"""A store of objects that are named by their SHA-256: in a folder, in S3, or in Redis.

A name is imported at its first use: a job without files needs the errors only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sandfleet_config.lazy_names import import_lazily

if TYPE_CHECKING:
    from sandfleet_config.store.opening import open_store
    from sandfleet_config.store.protocol import (
        ObjectDamaged,
        ObjectInfo,
        ObjectMissing,
        ObjectStore,
        ObjectTooLarge,
        StoreDown,
        StoreError,
        StoreForeign,
        StoreFull,
    )
    from sandfleet_config.store.references import References

__all__ = [
    "ObjectDamaged",
    "ObjectInfo",
    "ObjectMissing",
    "ObjectStore",
    "ObjectTooLarge",
    "References",
    "StoreDown",
    "StoreError",
    "StoreForeign",
    "StoreFull",
    "open_store",
]

_NAMES: Final = {
    "sandfleet_config.store.opening": "open_store",
    "sandfleet_config.store.protocol": (
        "ObjectDamaged ObjectInfo ObjectMissing ObjectStore ObjectTooLarge StoreDown StoreError StoreForeign StoreFull"
    ),
    "sandfleet_config.store.references": "References",
}

__getattr__, __dir__ = import_lazily(__name__, _NAMES)
