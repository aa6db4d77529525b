"""The Celery options of both sides: one Redis is broker and result store, and only JSON is sent."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, quote, urlsplit

from sandfleet_config.queues import KEY_PREFIX
from sandfleet_config.redis_url import is_sentinel, parse_sentinel_url

if TYPE_CHECKING:
    from sandfleet_config.settings import Settings

_BROKER_OPTIONS: Final = {
    "global_keyprefix": KEY_PREFIX,
    "socket_timeout": 15,
    "socket_connect_timeout": 5,
    "socket_keepalive": True,
    "health_check_interval": 10,
}
_BACKEND_OPTIONS: Final = {"global_keyprefix": KEY_PREFIX}


def celery_url(dsn: str) -> str:
    """Return `dsn` as Celery spells it, for broker and result store alike.

    Sockets and sentinels differ from redis-py's form: ``unix://:secret@/path?db=1`` becomes
    ``redis+socket://:secret@/path?virtual_host=1``. The part before the plus names the transport
    and the result backend. Each of them parses the rest (kombu's ``_connparams``, Celery's
    ``_params_from_url``), and both accept a password only before the path.
    """
    if is_sentinel(dsn):
        return parse_sentinel_url(dsn).for_celery()
    parts = urlsplit(dsn)
    if parts.scheme != "unix":
        return dsn
    query = dict(parse_qsl(parts.query))
    credentials = parts.netloc.rpartition("@")[0]
    if not credentials and "password" in query:
        credentials = f"{quote(query.get('username', ''), safe='')}:{quote(query['password'], safe='')}"
    return f"redis+socket://{credentials + '@' if credentials else ''}{parts.path}?virtual_host={query.get('db', '0')}"


def shared_options(settings: Settings) -> dict[str, Any]:
    """Return the Celery configuration of producers, workers and Flower (for Celery 5.7)."""
    url = celery_url(settings.redis_dsn)
    return {
        "broker_url": url,
        "result_backend": url,
        # The spec is one string in the JSON: kombu's object hook (`__type__`) does not see its
        # keys.
        "task_serializer": "json",
        "result_serializer": "json",
        "accept_content": ["json"],
        "result_accept_content": ["json"],
        "task_default_queue": settings.queue,
        "task_create_missing_queues": True,
        "task_track_started": False,
        "result_expires": settings.result_ttl_seconds,
        "result_extended": False,
        "worker_send_task_events": True,
        "task_send_sent_event": False,
        "worker_hijack_root_logger": False,
        "enable_utc": True,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_transport_options": _BROKER_OPTIONS,
        "result_backend_transport_options": _BACKEND_OPTIONS,
        # An outcome of a job that ends during an outage of Redis is stored when Redis is back.
        "result_backend_always_retry": True,
        # Celery passes this to the connection of a unix socket too, which refuses the argument.
        "redis_socket_keepalive": not url.startswith("redis+socket:"),
        "redis_backend_health_check_interval": 10,
        **_tls_and_sentinels(settings),
    }


def _tls_and_sentinels(settings: Settings) -> dict[str, Any]:
    """Return the options of rediss:// and sentinel://, which do not fit into a URL."""
    from sandfleet_config.redis_client import sentinel_options, tls_options

    sentinels, options = settings.sentinels, dict[str, Any]()
    if settings.redis_dsn.startswith("rediss:") or (sentinels and sentinels.uses_tls):
        # Celery compares with the constant.
        tls = tls_options(settings) | {"ssl_cert_reqs": ssl.CERT_REQUIRED}
        options |= {"broker_use_ssl": tls, "redis_backend_use_ssl": tls}
    if sentinels:
        known = {"master_name": sentinels.service, "sentinel_kwargs": sentinel_options(settings, sentinels)}
        options["broker_transport_options"] = _BROKER_OPTIONS | known
        options["result_backend_transport_options"] = _BACKEND_OPTIONS | known
    return options
