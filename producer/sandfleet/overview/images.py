"""The images of a fleet: which hosts have each, and where they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sandfleet.overview.fields import format_iso

if TYPE_CHECKING:
    from sandfleet.channel.fleet_state import HostImage


@dataclass(frozen=True)
class FleetImage:
    """A name of an image, and the hosts that have each digest of it, most hosts first.

    `size` is the greatest in bytes, `used` when a job last used it on any host.
    """

    name: str
    digests: Mapping[str, Sequence[str]]
    size: int
    used: float

    @property
    def count(self) -> int:
        """The number of hosts that have it."""
        return len({host for hosts in self.digests.values() for host in hosts})

    @property
    def differs(self) -> bool:
        """Whether hosts have different digests of the name."""
        return len(self.digests) > 1

    @property
    def rare(self) -> Mapping[str, Sequence[str]]:
        """The digests that fewer hosts have than the most common one, with their hosts."""
        return dict(list(self.digests.items())[1:])


def group_images(found: Mapping[str, Sequence[HostImage]]) -> list[FleetImage]:
    """Group the images of hosts by name."""
    hosts: dict[str, dict[str, list[str]]] = {}
    sizes: dict[str, int] = {}
    used: dict[str, float] = {}
    for host, images in sorted(found.items()):
        for image in images:
            hosts.setdefault(image.name, {}).setdefault(image.digest, []).append(host)
            sizes[image.name] = max(image.size, sizes.get(image.name, 0))
            used[image.name] = max(image.used, used.get(image.name, 0.0))
    return [
        FleetImage(
            name, dict(sorted(digests.items(), key=lambda item: (-len(item[1]), item[0]))), sizes[name], used[name]
        )
        for name, digests in sorted(hosts.items())
    ]


def fleet_image_fields(image: FleetImage) -> dict[str, Any]:
    """Return an image with its hosts for programs."""
    return {
        "image": image.name,
        "hosts": image.count,
        "differs": image.differs,
        "digests": {digest: list(hosts) for digest, hosts in image.digests.items()},
        "size": image.size,
        "used": format_iso(image.used),
    }
