"""Make one image in a staging folder: unpack its source, describe it, and pack it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from sandfleet_config.errors import ImageInvalid
from sandfleet_config.units import format_count

from sandfleet_worker.sandbox.image.catalog import EROFS, FACTS
from sandfleet_worker.sandbox.image.image import Image, describe
from sandfleet_worker.sandbox.image.layers import check_layers
from sandfleet_worker.sandbox.image.oci import ImageConfig
from sandfleet_worker.sandbox.image.pack import add_hosts, add_mount_points, normalize, write_erofs
from sandfleet_worker.sandbox.image.staging import write_json
from sandfleet_worker.sandbox.image.starter import STARTERS
from sandfleet_worker.sandbox.image.unpack import unpack_oci, unpack_rootfs

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandfleet_worker.sandbox.image.oci import OciImage
    from sandfleet_worker.sandbox.image.tools import StagingFolder

COPIED_KINDS = frozenset({"containers-storage", "docker", "docker-archive", "docker-daemon", "oci-archive"})
"""Sources that skopeo(1) can copy into an OCI layout."""


def build_image(
    name: str,
    source: str,
    oci: OciImage | None,
    staging: StagingFolder,
    on_progress: Callable[[str], None],
    *,
    digest: str = "",
) -> Image:
    """Make an image of `source`.

    It gets `digest`, by default that of its manifest or its content. Its two files are in the
    folder of `erofs_path`, ready to be moved.

    Raises:
        ImageInvalid: the source or its content is not usable.
        ImageUnavailable: a tool or a right is missing on this host.
        HostResources: the disk is full.
    """

    def unpack(staging: StagingFolder) -> ImageConfig:
        on_progress(f"unpacking {source}")
        return _unpack(source, oci, staging)

    return fill_image(name, source, unpack, staging, on_progress, digest=digest or (oci.digest if oci else None))


def fill_image(
    name: str,
    source: str,
    fill: Callable[[StagingFolder], ImageConfig],
    staging: StagingFolder,
    on_progress: Callable[[str], None],
    *,
    digest: str | None = None,
) -> Image:
    """Make an image of the tree that `fill` makes, with the settings that it returns.

    The image gets the digest of its content, unless `digest` is given. Raises as `build_image`.
    """
    began = time.time()
    config = fill(staging)
    add_mount_points(staging.tree)
    add_hosts(staging.tree)
    header = b"sandfleet tree 1\0" + repr(config).encode() + b"\0\n"
    content = normalize(
        staging.tree, began, staging.limits, header=header, is_hashed=digest is None, check=staging.check
    )
    blob = staging.folder / "blob"
    blob.mkdir(mode=0o755)
    erofs = blob / EROFS
    on_progress(f"packing {format_count(content.files, 'file')}, {content.size_bytes / 1e6:.1f} MB")
    write_erofs(staging, erofs, content.latest)
    facts = {"name": name, "digest": digest or content.digest, "source": source}
    image = describe(staging.tree, erofs, config).model_copy(update=facts)
    # The reader knows where the image is: a store may be moved.
    stored = image.model_dump(mode="json", exclude={"name", "erofs_path"})
    write_json(blob / FACTS, stored, staging.folder / "image.json.new")
    return image


def _unpack(source: str, oci: OciImage | None, staging: StagingFolder) -> ImageConfig:
    if oci is not None:
        check_layers(oci.layers, staging.limits, staging.check)
        unpack_oci(oci, staging)
        return oci.config
    kind, _, rest = source.partition(":")
    if kind == "rootfs" and rest:
        unpack_rootfs(Path(rest), staging)
        return ImageConfig()
    starter = STARTERS.get(rest) if kind == "starter" else None
    if starter is None:
        raise _no_source(source)
    starter.build(staging)
    return starter.config


def _no_source(source: str) -> ImageInvalid:
    """Return the error of a source that no image can be made from, with what to give instead."""
    kind, _, rest = source.partition(":")
    shown = source[:200]
    forms = "rootfs:FOLDER, rootfs:FILE.tar[.gz|.xz|.zst] or oci:LAYOUT[:TAG]"
    starters = ", ".join(STARTERS)
    if kind == "starter":
        return ImageInvalid.of(f"there is no starter image {rest[:200]!r}, only {starters}: give a source, {forms}")
    if kind in COPIED_KINDS:
        copy = f"skopeo copy {shown} oci:FOLDER:NAME"
        return ImageInvalid.of(f"{kind}: is not read here: copy it first (`{copy}`), then give oci:FOLDER:NAME")
    hint = f", did you mean rootfs:{shown}?" if Path(source).exists() else f"; without a source there are: {starters}"
    return ImageInvalid.of(f"cannot make an image from {shown!r}: give {forms}{hint}")
