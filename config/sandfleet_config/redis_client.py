"""Build clients of the fleet's Redis: at an address, over TLS, or where sentinels say it is."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final, TypeVar

import redis
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.exceptions import NoPermissionError
from redis.retry import Retry
from redis.sentinel import Sentinel, SentinelConnectionPool, SentinelManagedConnection, SentinelManagedSSLConnection

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandfleet_config.redis_url import SentinelUrl
    from sandfleet_config.settings import Settings

SENTINEL_SECONDS: Final = 1.0
"""Timeout of a question to one sentinel; after it the next one is asked."""
T = TypeVar("T")


def tls_options(settings: Settings) -> dict[str, Any]:
    """Return redis-py's options of TLS; kombu and Celery take the same ones.

    The certificate of Redis is always checked: by `ca_file`, else by the system's certificates.
    """
    files = settings.redis
    options = {
        "ssl_cert_reqs": "required",
        "ssl_ca_certs": files.ca_file and str(files.ca_file),
        "ssl_certfile": files.cert_file and str(files.cert_file),
        "ssl_keyfile": files.key_file and str(files.key_file),
    }
    return {name: value for name, value in options.items() if value is not None}


def sentinel_options(settings: Settings, sentinels: SentinelUrl) -> dict[str, Any]:
    """Return redis-py's options of a connection to a sentinel."""
    options: dict[str, Any] = {
        "protocol": 2,
        "socket_timeout": SENTINEL_SECONDS,
        "socket_connect_timeout": SENTINEL_SECONDS,
        # The next sentinel is the retry.
        "retry": Retry(NoBackoff(), 0),
        "username": sentinels.sentinel_username or None,
        "password": sentinels.sentinel_password or None,
    }
    return options | ({"ssl": True, **tls_options(settings)} if sentinels.uses_tls else {})


def new_client(settings: Settings, client_class: Any = redis.Redis, **options: Any) -> Any:
    """Build a client of `client_class` with redis-py's `options`; nothing is connected yet.

    With sentinels each new connection asks them for the primary, and one whose Redis has become a
    replica is dropped.

    Raises:
        ValueError: the URL cannot be read; the message may repeat a part of it.
    """
    sentinels = settings.sentinels
    if sentinels is None:
        uses_tls = settings.redis_dsn.startswith("rediss:")
        return client_class.from_url(settings.redis_dsn, **(tls_options(settings) if uses_tls else {}), **options)
    known: dict[str, Any] = {
        "db": sentinels.db,
        "username": sentinels.username or None,
        "password": sentinels.password or None,
    }
    known["connection_class"] = TlsPrimaryConnection if sentinels.uses_tls else PrimaryConnection
    known |= tls_options(settings) if sentinels.uses_tls else {}
    manager: Any = Sentinel(  # type: ignore[no-untyped-call]
        sentinels.addresses, sentinel_kwargs=sentinel_options(settings, sentinels)
    )
    return manager.master_for(
        sentinels.service, redis_class=client_class, connection_pool_class=PrimaryPool, **known, **options
    )


def is_forbidden(error: BaseException) -> bool:
    """Whether Redis refuses a command, or one in a script, to the user of this connection."""
    # Redis 7 gives the second one no code of its own.
    return isinstance(error, NoPermissionError) or str(error).startswith("The user executing the script can't")


class PrimaryConnection(SentinelManagedConnection):
    """A connection that asks the sentinels each time it connects.

    redis-py's own (8.1) asks in `connect` only. When it sends on a connection that was lost, it
    goes back to the address that it had, where no Redis is after a fail-over.
    """

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:  # noqa: FBT001, FBT002  redis-py's
        """Connect where the primary is, if there is no connection, and send."""
        if not self.is_connected:
            self.connect()  # type: ignore[no-untyped-call]
        super().send_packed_command(command, check_health)  # type: ignore[no-untyped-call]


class TlsPrimaryConnection(PrimaryConnection, SentinelManagedSSLConnection):
    """The same over TLS."""


class PrimaryPool(SentinelConnectionPool):
    """A pool that closes its connections to the sentinels with its own; redis-py's leaves them open."""

    def disconnect(self, inuse_connections: bool = True) -> None:  # noqa: FBT001, FBT002  redis-py's
        """Close connections: all of them, or those that nobody uses, since there is a new primary."""
        super().disconnect(inuse_connections)
        if inuse_connections:
            manager: Any = self.sentinel_manager
            for sentinel in manager.sentinels:
                sentinel.close()


class FailoverRetry(Retry):
    """Repeats a call for so many seconds, as a fail-over takes them.

    redis-py counts tries, and a call that connects anew counts them twice over: once for the call,
    once for the connection in it. Here the call counts alone, by the clock.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(ExponentialBackoff(cap=0.5, base=0.05), -1)
        self._seconds = seconds
        self._is_under_way = False

    def call_with_retry(  # redis-py's own signature differs from release to release
        self, do: Callable[[], T], fail: Callable[..., Any], *_: Any, with_failure_count: bool = False, **__: Any
    ) -> T:
        """Call `do` until it answers; call `fail` after each failure."""
        # A connection, and its retries, belong to one call at a time.
        is_outermost, self._is_under_way = not self._is_under_way, True
        until, failures = time.monotonic() + self._seconds, 0
        try:
            while True:
                try:
                    return do()
                except self._supported_errors as error:
                    failures += 1
                    fail(error, failures) if with_failure_count else fail(error)
                    if not is_outermost or time.monotonic() >= until:
                        raise
                    time.sleep(self._backoff.compute(failures))
        finally:
            if is_outermost:
                self._is_under_way = False
