"""Images: which hosts have which, and whether a name means the same on all of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sandfleet.errors import FleetError
from sandfleet.history.questions import HistoryFilter
from sandfleet.overview.host_failures import HOUR

from sandfleet_web.pages.handler import Page, PageHandler
from sandfleet_web.pages.hosts_page import read_images
from sandfleet_web.pages.paging import cut_page

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sandfleet.channel.fleet_state import FleetSummary, HostImage

    from sandfleet_web.pages.site import Site

SHOWN_OTHERS: Final = 5
IMAGE_CODES: Final = frozenset(("IMAGE_NOT_FOUND", "IMAGE_INVALID", "IMAGE_UNAVAILABLE"))


@dataclass(frozen=True)
class ImageRow:
    """A name of an image: on how many hosts, with which digests, and how it is used.

    `others` are (digest, hosts) of the digests that fewer hosts have than `digest`.
    """

    name: str
    hosts: int
    digest: str
    size: int
    used: float
    others: tuple[tuple[str, tuple[str, ...]], ...]
    warm: int = 0
    per_hour: int = 0
    failures: int = 0


def new_rows(
    images: Mapping[str, Sequence[HostImage]],
    summary: FleetSummary,
    per_hour: Mapping[str, int],
    failures: Mapping[str, int],
) -> list[ImageRow]:
    """Return a row for each name, those whose digests differ first."""
    found: dict[str, dict[str, list[tuple[str, HostImage]]]] = {}
    for host, listed in images.items():
        for image in listed:
            found.setdefault(image.name, {}).setdefault(image.digest, []).append((host, image))
    warm: Counter[str] = Counter()
    for worker in summary.workers:
        warm.update(worker.warm)
    rows = [
        _new_row(name, digests, (warm[name], per_hour.get(name, 0), failures.get(name, 0)))
        for name, digests in found.items()
    ]
    return sorted(rows, key=lambda row: (not row.others, not row.failures, -row.per_hour, row.name))


def _new_row(
    name: str, digests: Mapping[str, Sequence[tuple[str, HostImage]]], numbers: tuple[int, int, int]
) -> ImageRow:
    # The digest that most hosts have; of equals the one that was used last.
    order = sorted(digests, key=lambda one: (-len(digests[one]), -max(image.used for _, image in digests[one]), one))
    first, *rest = order
    everywhere = [pair for digest in order for pair in digests[digest]]
    return ImageRow(
        name,
        len({host for host, _ in everywhere}),
        first,
        digests[first][0][1].size,
        max(image.used for _, image in everywhere),
        tuple((digest, tuple(sorted(host for host, _ in digests[digest]))) for digest in rest[:SHOWN_OTHERS]),
        *numbers,
    )


def read_use(site: Site) -> tuple[dict[str, int], dict[str, int]]:
    """Read from the history how many runs of each image ended in the last hour, and failed by it."""
    history = site.sources.history
    if history is None:
        return {}, {}
    now = site.clock()
    try:
        points = history.roll_up("image", since=now - HOUR, until=now, step_seconds=int(HOUR))
        groups = history.find_failures(HistoryFilter(codes=IMAGE_CODES, since=now - HOUR), by="image")
    except FleetError:
        return {}, {}
    used: Counter[str] = Counter()
    for point in points:
        used[point.key] += point.count
    failed: Counter[str] = Counter()
    for group in groups:
        failed[group.image] += group.count
    return dict(used), dict(failed)


class ImagesPage(PageHandler):
    """All images."""

    async def get(self) -> None:
        """Show a page of them."""
        await self.answer(self._new_page())

    async def _new_page(self) -> Page:
        site = self.site
        summary = await site.read_summary()
        images = await read_images(site)
        used, failed = await site.reads.read("image use", lambda: read_use(site), kept_seconds=10.0)
        rows = new_rows(images, summary, used, failed)
        values: dict[str, Any] = {"rows": cut_page(rows, self.argument("page")), "hosts": len(images)}
        return Page("images.html", "Images", "Images", values, refresh=15, as_of=summary.at)
