"""Open the store that the settings name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from sandfleet_config.settings import SettingsInvalid
from sandfleet_config.store.folder import FolderStore
from sandfleet_config.store.redis_store import RedisStore

if TYPE_CHECKING:
    import redis

    from sandfleet_config.settings import Settings
    from sandfleet_config.store.protocol import ObjectStore

EXTRA = "sandfleet[stores]"


def open_store(settings: Settings, client: redis.Redis) -> ObjectStore:
    """Return the store of ``SANDFLEET_STORE__URL``; `client` is the fleet's Redis.

    Nothing is connected yet. `client` must not decode responses.

    Raises:
        SettingsInvalid: the extra ``stores`` is not installed, or the CA file cannot be read.
    """
    url = settings.store_url
    parts = urlsplit(url)
    if parts.scheme == "redis":
        return RedisStore(client, settings.store.redis_bytes, settings.redis_address)
    if parts.scheme == "file":
        return FolderStore(Path(unquote(parts.path)))
    try:
        from sandfleet_config.store.bucket import BucketStore
    except ImportError as error:
        if error.name != "obstore":
            raise
        msg = f"SANDFLEET_STORE__URL is {parts.scheme}://..., which needs obstore: pip install '{EXTRA}'"
        raise SettingsInvalid(msg) from None
    return BucketStore(settings.store)
