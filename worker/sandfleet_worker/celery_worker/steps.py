"""Bootsteps in place of Celery's ``Tasks``.

Jobs come by claims, so there is no channel to consume and nothing to prefetch.
"""

from __future__ import annotations

import contextlib
from functools import partial
from typing import Any

import redis
from celery import bootsteps
from celery.worker.consumer.consumer import CLOSE, TERMINATE  # type: ignore[attr-defined]
from celery.worker.consumer.control import Control
from celery.worker.consumer.mingle import Mingle
from kombu.serialization import register
from kombu.transport.redis import GlobalKeyPrefixMixin
from kombu.utils import json
from sandfleet_config.queues import KEY_PREFIX

from sandfleet_worker.delivery.direct_redis import DirectRedis

STOPPING = {CLOSE, TERMINATE}
TICK_SECONDS = 1.0
EVENTS_SECONDS = 0.2
"""Interval of sending events."""
COMPACT = "sandfleet-events"
"""Name of the serializer of events in kombu's registry. Its content type is that of any JSON."""
REPLIES, REPLY_TTL_SECONDS = "reply.celery.pidbox", 300
"""The end of the name of a list of replies, and how long one is kept that nobody reads."""
MAX_BUFFERED_EVENTS = 1000
"""A thread that adds one more sends them all at once."""


class EventClient(GlobalKeyPrefixMixin, DirectRedis):
    """Sends what kombu publishes, under the names that kombu's own client would use."""

    global_keyprefix = KEY_PREFIX


class NoConsumer:
    """Stands where Celery keeps kombu's consumer of the queues.

    There is nothing to consume on a channel.
    """

    on_message: Any = None
    channel = None

    def __init__(self, queues: list[Any]) -> None:
        self.queues = queues

    def consume(self) -> None:
        """Do nothing."""

    def cancel(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class NoQoS:
    """Stands where Celery counts prefetched messages: there are none."""

    value = prev = 0
    _mutex: Any = None

    def update(self) -> None:
        """Do nothing."""

    def set(self, value: int) -> None:
        """Do nothing."""

    def increment_eventually(self, count: int = 1) -> None:
        """Do nothing."""

    def decrement_eventually(self, count: int = 1) -> None:
        """Do nothing."""


class ClaimedTasks(bootsteps.StartStopStep):
    """Celery's ``Tasks`` step, without a channel.

    It starts the claims and, when the worker stops, drains. The consumer `c` is a
    `sandfleet_worker.celery_worker.consumer.SandboxConsumer`.
    """

    requires = (Mingle,)

    def start(self, c: Any) -> None:
        """Begin to claim; after a lost connection only the receiver of events is new."""
        c.update_strategies()
        c.task_consumer = NoConsumer(list(c.app.amqp.queues.consume_from.values()))
        c.qos = NoQoS()
        c.event_dispatcher.buffer_limit = MAX_BUFFERED_EVENTS
        _shorten_events(c.event_dispatcher)
        c.begin_claims()

    def stop(self, c: Any) -> None:
        """Drain if the worker stops.

        A lost connection comes through here too, and changes nothing.
        """
        if c.controller.blueprint.state in STOPPING:
            c.drain()

    def shutdown(self, c: Any) -> None:
        """Drain, if nothing did."""
        c.drain()

    def register_with_event_loop(self, c: Any, hub: Any) -> None:
        """Show the watchdog that the loop goes on, and send events each `EVENTS_SECONDS`."""
        hub.call_repeatedly(TICK_SECONDS, c.intake.watchdog.tick)
        hub.call_repeatedly(EVENTS_SECONDS, c.flush_events)

    def info(self, c: Any) -> Any:
        """Return how many claims are held, and the queues they come from."""
        return {
            "prefetch_count": 0,
            "claims": len(c.intake.held_claims.job_ids()),
            "queues": c.queue_patterns,
        }


def _shorten_events(dispatcher: Any) -> None:
    """Have Celery send events by one client, as JSON without spaces.

    By itself it makes a client for each send, which is half of its cost, and base64 of the text.
    Receivers of any release read both: a message names its encoding.
    """
    channel = dispatcher.producer.channel
    client = EventClient(connection_pool=channel.pool)
    channel.conn_or_acquire = lambda given=None: contextlib.nullcontext(given or client)
    channel.body_encoding = None
    register(COMPACT, partial(json.dumps, separators=(",", ":")), json.loads, "application/json", "utf-8")
    dispatcher.serializer = COMPACT


class ClaimedControl(Control):
    """Celery's ``Control`` step, after ours instead of after ``Tasks``.

    Sets a TTL on each list of replies: kombu sets none. If the client that asked has died, nobody
    reads the list.
    """

    requires = (ClaimedTasks,)

    def __init__(self, c: Any, **options: Any) -> None:
        super().__init__(c, **options)
        node: Any = self.box.node  # type: ignore[attr-defined]
        send = node.reply

        def reply(*given: Any, routing_key: str, **options: Any) -> None:
            send(*given, routing_key=routing_key, **options)
            client = redis.Redis(connection_pool=node.channel.pool)
            with contextlib.suppress(redis.RedisError):
                client.expire(f"{KEY_PREFIX}{routing_key}.{REPLIES}", REPLY_TTL_SECONDS)

        node.reply = reply
