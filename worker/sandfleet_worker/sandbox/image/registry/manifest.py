"""The manifest of an image, or an index of manifests, which is read before any layer. Pure.

Media types: OCI image-spec v1.1 and Docker's schema 2, which differ in names only.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sandfleet_config.errors import ImageInvalid

from sandfleet_worker.sandbox.image.oci import find_architecture, read_layers, wrong_platform
from sandfleet_worker.sandbox.image.references import is_digest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sandfleet_worker.sandbox.image.tools import Limits

_SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1"
_MAX_ENTRIES = 1000


@dataclass(frozen=True, slots=True)
class Manifest:
    """The raw manifest or index that a tag or a digest means; `digest` is that of the bytes."""

    digest: str
    fields: dict[str, Any]

    @classmethod
    def parse(cls, raw: bytes) -> Manifest:
        """Parse the bytes that the registry gave.

        Raises:
            ImageInvalid: they are no manifest.
        """
        try:
            fields = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise ImageInvalid.of("what the registry gave is no JSON: push the image again") from error
        if not isinstance(fields, dict):
            raise ImageInvalid.of("what the registry gave is no image manifest: push the image again")
        if fields.get("schemaVersion") == 1 or str(fields.get("mediaType")).startswith(_SCHEMA_1):
            raise ImageInvalid.of("the image is of Docker's schema 1 of before 2017: push it again with a current tool")
        return cls(f"sha256:{hashlib.sha256(raw).hexdigest()}", fields)

    @property
    def is_index(self) -> bool:
        """Whether it lists manifests of several platforms."""
        return isinstance(self.fields.get("manifests"), list)

    def check(self, limits: Limits) -> None:
        """Refuse what is not for this machine, or too large, by what the registry says about it.

        Raises:
            ImageInvalid: it is.
        """
        if self.is_index:
            _check_index(self.fields["manifests"])
            return
        sizes = [layer.get("size") for layer in read_layers(self.fields)]
        if not all(isinstance(size, int) and size >= 0 for size in sizes):
            raise ImageInvalid.of("the image's manifest is damaged: a layer has no size")
        limits.check(sum(size for size in sizes if isinstance(size, int)), 0)

    def find_own(self) -> str:
        """Return the digest of this machine's manifest in an index; empty if unknown.

        It is the first one, as skopeo chooses.
        """
        for entry in self.fields["manifests"] if self.is_index else ():
            if isinstance(entry, dict) and _read_platform(entry) == f"linux/{find_architecture()}":
                digest = str(entry.get("digest"))
                return digest if is_digest(digest) else ""
        return ""

    def count_bytes(self) -> int:
        """Return the bytes of all packed layers; 0 for an index, where they are not known yet."""
        layers = [] if self.is_index else self.fields.get("layers") or []
        return sum(layer["size"] for layer in layers)


def _check_index(entries: Sequence[object]) -> None:
    if len(entries) > _MAX_ENTRIES:
        raise ImageInvalid.of(f"the image's index lists {len(entries)} images, {_MAX_ENTRIES} are the most")
    platforms = [_read_platform(entry) for entry in entries]
    if f"linux/{find_architecture()}" not in platforms:
        raise wrong_platform([name for name in platforms if name != "unknown/unknown"])


def _read_platform(entry: object) -> str:
    platform = entry.get("platform") if isinstance(entry, dict) else None
    if not isinstance(platform, dict):
        return f"linux/{find_architecture()}"  # an index need not say it
    return f"{platform.get('os')}/{platform.get('architecture')}"
