"""Errors that say that this host has no room."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from sandfleet_config.errors import HostResources, SandboxError

from sandfleet_worker.system.supervised_thread import is_resource_error

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def host_faults() -> Iterator[None]:
    """Turn a lack of descriptors, threads, memory or disk into `HostResources`."""
    try:
        yield
    except SandboxError:
        raise
    except Exception as error:
        if not is_resource_error(error):
            raise
        msg = f"this host has no room for the job: {getattr(error, 'strerror', None) or error}"
        raise HostResources.of(msg) from error
