"""``sandfleet images``: the images of all hosts."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import typer
from sandfleet_config.units import format_bytes

from sandfleet.cli import opening
from sandfleet.cli.listing import ListOptions
from sandfleet.cli.option_fields import takes_fields
from sandfleet.cli.rows import Columns, format_age, print_rows, take
from sandfleet.cli.show import note
from sandfleet.cli.watching import WatchCommand, print_watched
from sandfleet.overview.images import FleetImage, fleet_image_fields, group_images

if TYPE_CHECKING:
    from collections.abc import Mapping

SHOWN_DIGITS: Final = len("sha256:") + 12
app = typer.Typer(rich_markup_mode=None)


@app.command(cls=WatchCommand)
@takes_fields(ListOptions)
def images(line: ListOptions) -> None:
    """List the images of all live hosts by name, and say where hosts have another digest of a name."""
    with opening.open_fleet() as fleet:

        def show() -> None:
            found = group_images(fleet.state.host_images())
            rows, has_more = take(found, line.limit)
            if not print_rows(rows, IMAGES, line.shown, is_whole=line.is_whole):
                note("no live host has said which images it has")
            elif has_more():
                note(f"there are more images than the {line.limit} shown: -n 0 lists all")
            for image in found:
                if image.differs:
                    rare = "; ".join(
                        f"{digest[:SHOWN_DIGITS]} on {', '.join(hosts)}" for digest, hosts in image.rare.items()
                    )
                    note(f"{image.name} is not the same on all hosts: {rare}")

        print_watched(show, line.watch, line.shown)


def _image_cells(image: FleetImage) -> Mapping[str, str]:
    return {
        "IMAGE": image.name,
        "HOSTS": str(image.count),
        "DIGEST": "differs" if image.differs else next(iter(image.digests), "")[:SHOWN_DIGITS],
        "SIZE": format_bytes(image.size),
        "USED": format_age(image.used, time.time()),
    }


def _image_wide(image: FleetImage) -> Mapping[str, str]:
    return {"ON": "; ".join(f"{digest[:SHOWN_DIGITS]}: {','.join(hosts)}" for digest, hosts in image.digests.items())}


IMAGES: Final = Columns[FleetImage](fleet_image_fields, _image_cells, _image_wide, lambda image: image.name)
