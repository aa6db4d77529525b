"""Live output in Redis: one stream a job, and an index of streams for each batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sandfleet_config.live import live_batch_key, live_key

from sandfleet.channel.live import LiveEntries, parse_entries

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sandfleet.channel.connection import Connections
    from sandfleet.channel.notices import Notices
    from sandfleet.channel.waker import Waker
    from sandfleet.channel.watches import LiveWatch

ENTRIES_AT_ONCE: Final = 64
CHANGED_AT_ONCE: Final = 500


class RedisLive:
    """The `LiveOutputs` of `RedisChannel`."""

    def __init__(self, connections: Connections, notices: Notices) -> None:
        self._connections, self._notices = connections, notices

    def read(self, cursors: Mapping[str, str]) -> dict[str, LiveEntries]:
        """Read the streams by one call."""
        if not cursors:
            return {}
        keys = {live_key(job_id).encode(): job_id for job_id in cursors}
        client: Any = self._connections.redis
        with self._connections.guard():
            answer = client.execute_command(
                "XREAD", "COUNT", ENTRIES_AT_ONCE, "STREAMS", *keys, *(cursors[job_id] for job_id in keys.values())
            )
        return {keys[key]: parse_entries(entries) for key, entries in answer or ()}

    def list_changed(self, batch: str, since: float) -> list[tuple[str, float]]:
        """Read the index of the batch: its scores are the ends of the streams' TTLs."""
        client: Any = self._connections.redis
        with self._connections.guard():
            found = client.zrangebyscore(
                live_batch_key(batch), since, "+inf", start=0, num=CHANGED_AT_ONCE, withscores=True
            )
        return [(job_id.decode(errors="replace"), float(score)) for job_id, score in found]

    def watch(self, job_id: str, waker: Waker) -> LiveWatch:
        """Watch a stream by a blocking read."""
        return self._notices.watch_live(job_id, waker)
