"""Names of images in registries, ``docker://...``, and patterns of such names. Pure: no I/O.

    docker://python                                 docker://docker.io/library/python:latest
    docker://team/app:v1                            docker://docker.io/team/app:v1
    docker://registry.example:5000/team/app@sha256:<64 hex>

The first part is a registry if it has a dot or a port, or is ``localhost``, as in Docker. The
digest outranks the tag.
"""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass
from typing import Final, Self

REGISTRY_PREFIX: Final = "docker://"
"""The beginning of a name that a host pulls from a registry."""
DOCKER_HUB: Final = "docker.io"
MAX_PATH_CHARS: Final = 200
_HUB_NAMES = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"})
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_REGISTRY = re.compile(rf"{_LABEL}(?:\.{_LABEL})*(?::[0-9]{{1,5}})?")
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_PART}(?:/{_PART})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_MAX_PORT = 65535


@dataclass(frozen=True, slots=True)
class RegistryName:
    """One image in a registry: by `tag`, or by `digest` (then a tag is for people only)."""

    registry: str
    path: str
    tag: str = ""
    digest: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse ``docker://[registry/]path[:tag][@digest]``; add the defaults of Docker.

        Raises:
            ValueError: it is no such name; says what is wrong.
        """
        rest, at, digest = text.removeprefix(REGISTRY_PREFIX).partition("@")
        if at and not _DIGEST.fullmatch(digest):
            msg = "its digest must be sha256: and 64 lower-case hex digits"
            raise ValueError(msg)
        first, slash, path = rest.partition("/")
        if not (slash and _is_registry(first)):
            first, path = DOCKER_HUB, rest
        path, colon, tag = path.partition(":")
        registry = DOCKER_HUB if first.lower() in _HUB_NAMES else first.lower()
        if registry == DOCKER_HUB and "/" not in path:
            path = f"library/{path}"
        _check(registry, path)
        if colon and not _TAG.fullmatch(tag):
            msg = "its tag must be letters, digits, _ . and -, at most 128"
            raise ValueError(msg)
        return cls(registry, path, tag or ("" if digest else "latest"), digest)

    @property
    def repository(self) -> str:
        """Registry and path, without tag and digest."""
        return f"{self.registry}/{self.path}"

    @property
    def name(self) -> str:
        """The name with its tag, without the digest."""
        return f"{REGISTRY_PREFIX}{self.repository}{':' if self.tag else ''}{self.tag}"

    def __str__(self) -> str:
        """Return the whole name, as hosts list it."""
        return f"{self.name}@{self.digest}" if self.digest else self.name


def _is_registry(part: str) -> bool:
    return "." in part or ":" in part or part == "localhost"


def _is_host(part: str) -> bool:
    return "." in part or part == "localhost"


def _check(registry: str, path: str) -> None:
    port = registry.partition(":")[2]
    if not _REGISTRY.fullmatch(registry) or (port and not 0 < int(port) <= _MAX_PORT):
        msg = "its registry must be a host name, with :port if it is not 443"
        raise ValueError(msg)
    if len(path) > MAX_PATH_CHARS or not _PATH.fullmatch(path):
        msg = f"its path must be lower-case letters, digits, . _ - and /, at most {MAX_PATH_CHARS}"
        raise ValueError(msg)


def normalize_image(image: str) -> str:
    """Return an image's name as hosts list it: with Docker's defaults, or without ``latest``.

    A malformed name is returned as it is: its worker refuses it.
    """
    if image.startswith(REGISTRY_PREFIX):
        try:
            return str(RegistryName.parse(image))
        except ValueError:
            return image
    name, separator, digest = image.partition("@")
    return f"{name.removesuffix(':latest')}{separator}{digest}"


def pin_image(image: str, digest: str) -> str:
    """Return what a host needs in order to run `digest` of an image.

    It is the digest alone, or the name that the image is pulled by, with the digest.
    """
    if not image.startswith(REGISTRY_PREFIX):
        return digest
    return f"{normalize_image(image).partition('@')[0]}@{digest}"


def split_pattern(pattern: str) -> tuple[str, str]:
    """Split a glob pattern into that of the registry and that of the rest.

    ``*`` is every registry, ``registry.example`` all that it has, ``python`` and ``team/*`` are
    names of Docker Hub. Both parts match on their own: no name can pose as a registry.
    """
    first, slash, rest = pattern.removeprefix(REGISTRY_PREFIX).partition("/")
    if slash and (_is_registry(first) or first == "*"):
        return _lower_registry(first), rest
    if not slash and (first == "*" or _is_host(first.partition(":")[0])):
        return _lower_registry(first), "*"
    rest = f"{first}{slash}{rest}"
    return DOCKER_HUB, rest if "/" in rest else f"library/{rest}"


def _lower_registry(name: str) -> str:
    return DOCKER_HUB if name.lower() in _HUB_NAMES else name.lower()


def matches_pattern(name: RegistryName, pattern: str) -> bool:
    """Whether `pattern` (see `split_pattern`) names the image; without a tag it names every tag."""
    registry, rest = split_pattern(pattern)
    if not fnmatch.fnmatchcase(name.registry, registry):
        return False
    forms = (name.path, f"{name.path}:{name.tag}", f"{name.path}@{name.digest}")
    return any(fnmatch.fnmatchcase(form, rest) for form in forms)


def is_shared_pattern(pattern: str) -> bool:
    """Whether `pattern` can name shared images.

    It is a glob pattern of names, which ``@sha256:...`` may follow.
    """
    name, at, digest = pattern.partition("@")
    is_plain = bool(name) and "://" not in name and not any(char.isspace() for char in name)
    return is_plain and (not at or _DIGEST.fullmatch(digest) is not None)


def matches_shared(name: str, digest: str, pattern: str) -> bool:
    """Whether `pattern` lets a host take the shared image `name` with this digest.

    ``*`` also matches ``/``.
    """
    wanted, at, only = pattern.partition("@")
    return fnmatch.fnmatchcase(name, wanted.removesuffix(":latest")) and (not at or only == digest)
