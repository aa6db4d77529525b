"""Connections to Redis that work after a fork, and errors that say what to do."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import redis
from redis.backoff import ExponentialBackoff
from redis.exceptions import OutOfMemoryError
from redis.retry import Retry
from sandfleet_config.celery import celery_url, shared_options
from sandfleet_config.redis_client import FailoverRetry, is_forbidden, new_client
from sandfleet_config.settings import SettingsInvalid

from sandfleet.errors import FleetUnavailable

if TYPE_CHECKING:
    from collections.abc import Generator

    from celery import Celery
    from sandfleet_config.settings import Settings

CONNECT_SECONDS = 5
SOCKET_SECONDS = 15
RETRIES = 5
"""With the back-off below about 2 s in all: enough for a restart of Redis."""


class ReplicasMissing(redis.RedisError):
    """Too few replicas have what was written. Redis's primary has it."""


class Connections:
    """Redis client and Celery app of one process, made at the first use.

    A forked child makes new ones.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._redis: redis.Redis | None = None
        self._app: Celery | None = None
        self._scripts: dict[str, Any] = {}

    @property
    def redis(self) -> redis.Redis:
        """The client for records, outcomes and cancels."""
        with self._lock_of_process():
            client = self._redis
            if client is None:
                self._redis = client = new_redis(self.settings)
            return client

    @property
    def app(self) -> Celery:
        """The Celery app that broadcasts to workers."""
        with self._lock_of_process():
            if self._app is None:
                self._app = new_publishing_app(self.settings)
            return self._app

    def new_pipe(self) -> Any:
        """Return a pipeline without a transaction: each script in it is atomic."""
        client: Any = self.redis
        return client.pipeline(transaction=False)

    def script(self, text: str) -> Any:
        """Return the Lua script `text`, ready to be called.

        Redis-py sends its text only if Redis lacks it.
        """
        client = self.redis
        with self._lock_of_process():
            if text not in self._scripts:
                self._scripts[text] = client.register_script(text)
            return self._scripts[text]

    def close(self) -> None:
        """Close every connection; the next use opens new ones."""
        with self._lock_of_process():
            client, app = self._redis, self._app
            self._redis = self._app = None
            self._scripts = {}
        if client is not None:
            client.close()
        if app is not None:
            app.close()

    def _lock_of_process(self) -> threading.Lock:
        if self._pid != os.getpid():
            # A forked child: the sockets are the parent's, and a thread that the child lacks may
            # hold the lock.
            self._lock = threading.Lock()
            self._redis = self._app = None
            self._scripts = {}
            self._pid = os.getpid()
        return self._lock

    @contextmanager
    def guard(self, *job_ids: str) -> Generator[None]:
        """Turn errors of redis-py, kombu and sockets into `FleetUnavailable` with these job ids."""
        try:
            yield
        except Exception as error:
            if not isinstance(error, (redis.RedisError, OSError)) and not is_of_kombu(error):
                raise
            raise FleetUnavailable(_explain(error, self.settings.redis_address), job_ids) from error


def is_of_kombu(error: Exception) -> bool:
    """Whether `error` is kombu's: Redis is out of reach. kombu is imported only by who uses it."""
    kombu = sys.modules.get("kombu.exceptions")
    return kombu is not None and isinstance(error, kombu.OperationalError)


def new_redis(settings: Settings) -> redis.Redis:
    """Build the client; nothing is connected yet.

    Raises:
        SettingsInvalid: the URL cannot be read.
    """
    try:
        client: redis.Redis = new_client(
            settings,
            # With RESP3, redis-py 8 sends CLIENT MAINT_NOTIFICATIONS, which Redis 7 does not know.
            protocol=2,
            socket_connect_timeout=CONNECT_SECONDS,
            socket_timeout=SOCKET_SECONDS,
            health_check_interval=10,
            retry=_new_retry(settings),
            retry_on_error=[redis.ConnectionError, redis.TimeoutError],
        )
    except (ValueError, TypeError):
        # The parser repeats parts of the URL, and one part is the password.
        raise SettingsInvalid(
            "SANDFLEET_REDIS_URL cannot be read as a Redis URL: redis://[:password@]host:port/0"
        ) from None
    untyped: Any = client
    # The answer as Redis sends it: redis-py would make a dict of each entry.
    untyped.set_response_callback("XREAD", _keep_answer)
    return client


def _new_retry(settings: Settings) -> Retry:
    if settings.sentinels:
        return FailoverRetry(settings.redis.failover_seconds)
    return Retry(ExponentialBackoff(cap=0.5, base=0.05), RETRIES)


def _keep_answer(answer: Any, **_options: Any) -> Any:
    return answer


def new_publishing_app(settings: Settings) -> Celery:
    """Build the app that broadcasts.

    It has no result backend: with one, each send would SUBSCRIBE.
    """
    from celery import Celery
    from celery.backends.base import DisabledBackend

    fleet_url = celery_url(settings.redis_dsn)

    class PublishingCelery(Celery):
        """Uses the fleet's Redis only.

        Celery prefers ``CELERY_BROKER_URL`` and ``CELERY_RESULT_BACKEND`` to any setting, and those
        belong to the application around us.
        """

        def connection_for_write(self, url: str | None = None, **kwargs: Any) -> Any:
            return super().connection_for_write(url or fleet_url, **kwargs)

        def connection_for_read(self, url: str | None = None, **kwargs: Any) -> Any:
            return super().connection_for_read(url or fleet_url, **kwargs)

        def _get_backend(self) -> Any:
            return DisabledBackend(app=self)

    app = PublishingCelery("sandfleet", set_as_current=False)
    app.conf.update(shared_options(settings))
    return app


def _explain(error: Exception, address: str) -> str:
    match error:
        case redis.AuthenticationError():
            return f"Redis at {address} wants another user or password: set them in SANDFLEET_REDIS_URL"
        case OutOfMemoryError():
            return (
                f"Redis at {address} is out of memory and takes no more:"
                " raise its maxmemory, or let outcomes expire sooner"
            )
        case redis.ResponseError() if is_forbidden(error):
            return (
                f"Redis at {address} refuses: {error}. The user of SANDFLEET_REDIS_URL may not do this."
                " Its rules are in the ACL file of Redis, where each queue must be named"
            )
        case ReplicasMissing():
            return str(error)
        case redis.ResponseError():
            return f"Redis at {address} refuses: {error}"
        case _:
            reason = str(error) or type(error).__name__
            return f"cannot reach Redis at {address} ({reason}): start it, or set SANDFLEET_REDIS_URL to where it is"
