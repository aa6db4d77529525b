"""The Celery options of both sides: one Redis is broker and result store, and only JSON is sent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote, urlsplit

from sandfleet_config.queues import KEY_PREFIX

if TYPE_CHECKING:
    from sandfleet_config.settings import Settings


def celery_url(dsn: str) -> str:
    """Return redis-py's `dsn` as Celery spells it, for broker and result store alike.

    Only sockets differ: ``unix://:secret@/path?db=1`` becomes
    ``redis+socket://:secret@/path?virtual_host=1``. The part before the plus names the transport
    and the result backend. Each of them parses the rest (kombu's ``_connparams``, Celery's
    ``_params_from_url``), and both accept a password only before the path.
    """
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
        "broker_transport_options": {
            "global_keyprefix": KEY_PREFIX,
            "socket_timeout": 15,
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
            "health_check_interval": 10,
        },
        "result_backend_transport_options": {"global_keyprefix": KEY_PREFIX},
        # An outcome of a job that ends during an outage of Redis is stored when Redis is back.
        "result_backend_always_retry": True,
        # Celery passes this to the connection of a unix socket too, which refuses the argument.
        "redis_socket_keepalive": not url.startswith("redis+socket:"),
        "redis_backend_health_check_interval": 10,
    }
