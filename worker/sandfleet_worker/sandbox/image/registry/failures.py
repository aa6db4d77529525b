"""Which code a failed call of skopeo means. Pure: reads skopeo's own words.

The words are those of skopeo 1.9 and 1.18, whose library turns each answer of a registry into one
line (containers/image: docker/docker_client.go, docker/errors.go; docker/distribution:
registry/api/errcode).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from sandfleet_config.errors import ImageInvalid, ImageNotFound, ImageUnavailable

if TYPE_CHECKING:
    from sandfleet_config.errors import SandboxError
    from sandfleet_config.image_names import RegistryName

MAX_SHOWN_CHARS = 400
_QUERY = re.compile(r"(https?://[^\s\"?]+)\?[^\s\"]*")
_HEX = re.compile(r"[0-9a-f]{12,}")
_MESSAGE = re.compile(r'msg="((?:[^"\\]|\\.)*)"')


class NotInRegistry(ImageNotFound):
    """The registry itself says that it has no such image: no host can pull it."""


class Failure(NamedTuple):
    """The error of a failed call, and whether the same call may work in a moment."""

    error: SandboxError
    is_passing: bool = False


_ABSENT = ("manifest unknown", "name unknown", "repository name not known", "repository not found", "blob unknown")
_REFUSED = (
    "unauthorized",
    "authentication required",
    "access denied",
    "is denied",
    "403 forbidden",
    "401 ",
    "invalid username",
)
_LIMITED = ("toomanyrequests", "too many requests", "429")
_CERTIFICATE = ("x509:", "certificate", "server gave http response to https client")
_OTHER_PLATFORM = ("no image found in manifest list", "no image found in image index")
_HOSTILE = (
    "exceeded maximum allowed size",
    "does not match",
    "did not match",
    "digest mismatch",
    "invalid checksum",
    "unsupported",
    "unknown mediatype",
    "unexpected mediatype",
    "mime type",
    "unknown image manifest",
    "not an image",
    "invalid character",
    "cannot unmarshal",
    "corrupt",
)


def read_failure(stderr: str, name: RegistryName) -> Failure:
    """Return what skopeo's `stderr` means for the pull of `name`."""
    said = _read_message(stderr)
    lower = _leave_out_names(said, name).lower()
    if any(sign in lower for sign in _ABSENT):
        return Failure(NotInRegistry.of(f"{name.registry} has no {name}: check the name, the tag and the digest"))
    if any(sign in lower for sign in _LIMITED):
        return Failure(
            _unavailable(name, "limits its pulls now", "wait, or set a password in SANDFLEET_IMAGES__AUTH_FILE", said),
            True,
        )
    if any(sign in lower for sign in _CERTIFICATE):
        hint = "put its CA's certificate into SANDFLEET_IMAGES__CA_DIR"
        return Failure(_unavailable(name, "has a certificate that this host does not trust", hint, said))
    if any(sign in lower for sign in _REFUSED):
        hint = "check the image's name, and the password in SANDFLEET_IMAGES__AUTH_FILE (`skopeo login --authfile`)"
        return Failure(_unavailable(name, "refuses this host", hint, said))
    if any(sign in lower for sign in _OTHER_PLATFORM):
        return Failure(ImageInvalid.of(f"{name} is not for this host's platform: {said}"))
    if any(sign in lower for sign in _HOSTILE):
        return Failure(ImageInvalid.of(f"{name} cannot be used, build and push it again: {said}"))
    hint = "check that the registry runs and that this host reaches it"
    return Failure(_unavailable(name, "did not give the image", hint, said), True)


def _leave_out_names(said: str, name: RegistryName) -> str:
    """Return skopeo's words without digests, the registry and the image: a digest may have a 429 in it."""
    for own in (str(name), f"{name.registry}/{name.path}", name.registry):
        said = said.replace(own, "")
    return _HEX.sub("", said)


def _unavailable(name: RegistryName, what: str, hint: str, said: str) -> ImageUnavailable:
    return ImageUnavailable.of(f"{name} cannot be pulled: {name.registry} {what}; {hint} (skopeo: {said})")


def _read_message(stderr: str) -> str:
    """Return the last message of skopeo's log, without control characters."""
    found = _MESSAGE.findall(stderr)
    text = found[-1].replace('\\"', '"') if found else stderr.strip()
    text = text.removeprefix("Error parsing image name ")
    text = _QUERY.sub(r"\1?...", text)  # a signed address is a password for some minutes
    plain = "".join(char if char.isprintable() else " " for char in text)
    return plain[-MAX_SHOWN_CHARS:] or "it said nothing"
