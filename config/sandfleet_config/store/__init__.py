"""A store of objects that are named by their SHA-256: in a folder, in S3, or in Redis."""

from sandfleet_config.store.opening import open_store
from sandfleet_config.store.protocol import (
    ObjectDamaged,
    ObjectInfo,
    ObjectMissing,
    ObjectStore,
    ObjectTooLarge,
    StoreDown,
    StoreError,
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
    "StoreFull",
    "open_store",
]
