"""Whether this host can use the store of files, and keep files of its jobs."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

import redis
from sandfleet_config.settings import SettingsInvalid
from sandfleet_config.store.opening import open_store
from sandfleet_config.store.protocol import StoreError
from sandfleet_config.store.references import References

from sandfleet_worker.commands.checks import Finding, State, check_folder
from sandfleet_worker.host import connect

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandfleet_config.settings import WorkerSettings

PROBE: Final = b"sandfleet-worker doctor wrote this to try the store\n"
KEEP_SECONDS: Final = 60
SET_UP: Final = "look at SANDFLEET_STORE__URL and its credentials; only jobs with files need the store"


def check_store(settings: WorkerSettings) -> Finding:
    """Write an object to the store, and read it."""
    client = connect(settings)
    try:
        store = open_store(settings, client)
        name = hashlib.sha256(PROBE).hexdigest()
        References(client, store).keep([name], KEEP_SECONDS)
        store.put_bytes(name, PROBE)
        b"".join(store.read(name))
        store.close()
    except SettingsInvalid as error:
        return Finding(
            "store", State.FAILED, str(error), "install the extra, or set SANDFLEET_STORE__URL to another store"
        )
    except StoreError as error:
        return Finding("store", State.WARNING, error.message, SET_UP)
    except (redis.RedisError, OSError) as error:
        return Finding("store", State.WARNING, f"{type(error).__name__}: {error}", SET_UP)
    finally:
        client.close()
    return Finding("store", State.OK, f"{store.name}: written and read")


def check_files(settings: WorkerSettings) -> Iterator[Finding]:
    """Whether the store and the folders of `settings.files` can be used."""
    yield check_store(settings)
    yield check_folder("cache of files", settings.files.cache_dir, "SANDFLEET_FILES__CACHE_DIR")
    yield check_folder("spool", settings.files.spool_dir, "SANDFLEET_FILES__SPOOL_DIR")
