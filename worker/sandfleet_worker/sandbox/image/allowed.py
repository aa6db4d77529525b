"""Whether a host's policy allows an image that a job names by its digest.

The digest of another image does not bypass the policy. Its patterns are those of names. Why a
digest needs this check: docs/decisions/0014-digests-and-names.md.
"""

from __future__ import annotations

import fnmatch
from typing import TYPE_CHECKING

from sandfleet_config.errors import SecurityViolation
from sandfleet_config.image_names import REGISTRY_PREFIX, RegistryName

from sandfleet_worker.sandbox.image.shared_facts import SHARED_PREFIX

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sandfleet_worker.sandbox.image.catalog import Catalog
    from sandfleet_worker.sandbox.image.image import Image

ALL = "*"


class DigestForbidden(SecurityViolation):
    """This host's policy allows none of the names of the image or dataset with this digest."""


def check_digest(catalog: Catalog, image: Image, name: str | None, allowed: Sequence[str], setting: str) -> None:
    """Refuse `image`, which a job calls `name` with its digest, if none of its names is allowed.

    Its names are those that it has or had on this host, and the one that it was pulled or fetched
    by. `allowed` are the patterns of `setting`; the policy has been asked about `name` before.

    Raises:
        DigestForbidden: the policy allows none of its names.
    """
    if name is None or ALL in allowed or catalog.had_name(image.digest, name):
        return
    source = _read_source(image)
    if _is_same(source, name) or _matches(image.digest, allowed):
        return
    names = sorted({*catalog.list_names(image.digest), *filter(None, (source,))})
    if any(_matches(other, allowed) for other in names):
        return
    known = f"as {', '.join(names[:3])}" if names else "without a name"
    raise DigestForbidden.of(
        f"{name}@{image.digest}: this host has it {known}, which its policy does not allow ({setting}): allow one of its "
        "names or the digest there, or name what the policy allows"
    )


def _read_source(image: Image) -> str:
    """Return the name that an image was pulled or fetched by; empty of any other."""
    if image.source.startswith(SHARED_PREFIX):
        return image.source.removeprefix(SHARED_PREFIX)
    return image.source if image.source.startswith(REGISTRY_PREFIX) else ""


def _is_same(source: str, name: str) -> bool:
    """Whether an image that came as `source` may be called `name`: of a registry, with any tag."""
    if not (source.startswith(REGISTRY_PREFIX) and name.startswith(REGISTRY_PREFIX)):
        return source == name
    try:
        return RegistryName.parse(source).repository == RegistryName.parse(name).repository
    except ValueError:
        return False


def _matches(text: str, allowed: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(text, pattern) for pattern in allowed)
