"""The read-only API below ``/fleet/api/v1/``: the fields of the command line's ``-o json``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from sandfleet.errors import FleetError, HistoryUnavailable, QueryTooSlow
from sandfleet.overview.fields import audit_fields, batch_fields, format_iso, host_fields, image_fields, queue_fields

from sandfleet_web.history.answers import QUESTIONS, answer
from sandfleet_web.metrics.fleet_metrics import CONTENT_TYPE_LATEST, AgeTargets, render_fleet_metrics
from sandfleet_web.pages.audit_page import ENTRY
from sandfleet_web.pages.handler import JsonHandler
from sandfleet_web.pages.hosts import count_states, group_hosts
from sandfleet_web.pages.hosts_page import read_images
from sandfleet_web.pages.overview_page import ask_history_status, ask_hour, count_slots, read_batches
from sandfleet_web.pages.reading import TooBusy

if TYPE_CHECKING:
    from sandfleet_web.pages.site import Site

MAX_ROWS: Final = 500
DEFAULT_ROWS: Final = 50


async def _summary(site: Site, _: dict[str, str]) -> dict[str, Any]:
    found = await site.read_summary()
    hosts = group_hosts(found)
    busy, slots = count_slots(hosts)
    return {
        "at": format_iso(found.at),
        "hosts": count_states(hosts),
        "slots": slots,
        "busy": busy,
        "waiting": sum(queue.total for queue in found.queues),
        "delayed": found.delayed,
        "parked": found.parked,
        "dead_letters": found.dead_letters,
        "duplicates": found.duplicates,
        "redis_used": found.redis_used,
        "redis_max": found.redis_max,
        "ended_runs": found.ended_runs,
    }


async def _hosts(site: Site, _: dict[str, str]) -> dict[str, Any]:
    found = await site.read_summary()
    hour = await ask_hour(site)
    return {"at": format_iso(found.at), "hosts": [host_fields(host) for host in group_hosts(found, hour.failures)]}


async def _queues(site: Site, _: dict[str, str]) -> dict[str, Any]:
    found = await site.read_summary()
    return {"at": format_iso(found.at), "queues": [queue_fields(queue, found.at) for queue in found.queues]}


async def _batches(site: Site, query: dict[str, str]) -> dict[str, Any]:
    first, count = _number(query, "cursor", 0, 10_000), _number(query, "count", DEFAULT_ROWS, MAX_ROWS)
    found, has_more = await site.read(("api batches", first, count), lambda: read_batches(site, first, count))
    return {
        "batches": [batch_fields(batch) for batch in found],
        "cursor": str(first + count) if has_more else "",
    }


async def _images(site: Site, _: dict[str, str]) -> dict[str, Any]:
    found = await read_images(site)
    return {"images": {host: [image_fields(image) for image in images] for host, images in found.items()}}


async def _audit(site: Site, query: dict[str, str]) -> dict[str, Any]:
    count, before = _number(query, "count", DEFAULT_ROWS, MAX_ROWS), query.get("cursor", "")
    if before and not ENTRY.match(before):
        raise ValueError("cursor: must be the id of an entry")
    read = site.sources.state.read_audit
    found = await site.read(("api audit", count, before), lambda: read(count, before))
    return {
        "audit": [audit_fields(entry) for entry in found],
        "cursor": found[-1].entry_id if len(found) == count else "",
    }


async def _ask_history(name: str, site: Site, query: dict[str, str]) -> dict[str, Any]:
    history = site.sources.history
    if history is None:
        raise HistoryUnavailable("there is no history here: start sandfleet-web serve")
    key = ("api", name, tuple(sorted(query.items())))
    found: dict[str, Any] = await site.read(key, lambda: answer(history, name, query))
    return found


def _number(query: dict[str, str], name: str, default: int, most: int) -> int:
    given = query.get(name, "")
    if given and not (given.isdecimal() and given.isascii() and len(given) < len("1000000")):
        raise ValueError(f"{name}: must be a number")
    return min(int(given) if given else default, most)


class Question(JsonHandler):
    """Answers one question of the API."""

    def initialize(self, site: Site, ask: Callable[[Site, dict[str, str]], Awaitable[dict[str, Any]]]) -> None:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take the question."""
        super().initialize(site)
        self._ask = ask

    async def get(self) -> None:
        """Answer it, or say why not."""
        query = {name: self.argument(name) for name in self.request.query_arguments}
        try:
            self.answer_json(await self._ask(self.site, query))
        except ValueError as error:
            self._refuse(400, "bad_query", str(error))
        except QueryTooSlow as error:
            self._refuse(503, "too_slow", str(error))
        except HistoryUnavailable as error:
            self._refuse(503, "history_unavailable", str(error))
        except (FleetError, TooBusy) as error:
            self._refuse(503, "unavailable", str(error))

    def _refuse(self, status: int, name: str, message: str) -> None:
        self.set_status(status)
        self.answer_json({"error": name, "message": message})


_OWN: Final = {
    "summary": _summary,
    "hosts": _hosts,
    "queues": _queues,
    "batches": _batches,
    "images": _images,
    "audit": _audit,
}
API: Final[Mapping[str, Callable[[Site, dict[str, str]], Awaitable[dict[str, Any]]]]] = {
    **_OWN,
    **{name: partial(_ask_history, name) for name in QUESTIONS},
}
"""Each question by its name, the last part of its address."""


class FleetMetrics(JsonHandler):
    """The fleet's gauges for Prometheus: a token or the login."""

    async def get(self) -> None:
        """Write them; without Redis it answers 503, so that an alert can tell."""
        site = self.site
        try:
            summary = await site.read_summary()
        except (FleetError, TooBusy) as error:
            self.set_status(503)
            self.answer_json({"error": "unavailable", "message": str(error)})
            return
        targets = AgeTargets(site.settings.queue_age_seconds, site.settings.queue_ages)
        found = render_fleet_metrics(summary, await ask_history_status(site), targets, site.loop_lag.seconds)
        self.set_header("Content-Type", CONTENT_TYPE_LATEST)
        self.send(found)
