"""The grammar of image names: Docker's, without a registry to contact.

    name        python   tools/judge:3.2   registry.example:5000/team/app:v1   docker://team/app:v1
    digest      sha256:<64 hex>
    reference   name, digest or name@digest

`:latest` is the default tag, so `python:latest` and `python` are one name. A name that begins with
``docker://`` is that of an image in a registry (`image_names.RegistryName`); no other is pulled.
"""

import functools
import hashlib
import re
from dataclasses import dataclass
from typing import Self
from urllib.parse import quote

from sandfleet_config.errors import ImageNotFound
from sandfleet_config.image_names import REGISTRY_PREFIX, RegistryName

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_DOMAIN = r"[a-zA-Z0-9](?:[a-zA-Z0-9.-]*[a-zA-Z0-9])?(?::[0-9]{1,5})?"
_NAME = re.compile(rf"(?:{_DOMAIN}/)?{_COMPONENT}(?:/{_COMPONENT})*(?::[A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}})?")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
# The file name of a reference is the encoded name and ".json"; file names end at 255 bytes.
MAX_ENCODED_NAME = 240


@dataclass(frozen=True, slots=True)
class Reference:
    """A parsed reference: at least one of name and digest is there."""

    name: str | None
    digest: str | None
    in_registry: RegistryName | None = None
    """Where the image is pulled from; None of a local one."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse the reference that a spec or an operator gave.

        Raises:
            ImageNotFound: it is not a reference, so there is no such image.
        """
        if is_digest(text):
            return cls(name=None, digest=text)
        if text.startswith(REGISTRY_PREFIX):
            return cls._parse_registry_name(text)
        name, separator, digest = text.partition("@")
        if not is_name(name) or (separator and not is_digest(digest)):
            raise ImageNotFound.of(
                f"{text[:200]!r} is not an image reference: write a name such as `python` or `team/app:v1` "
                "(lower case), `sha256:` and 64 hex digits, or `name@sha256:...`"
            )
        return cls(name=name.removesuffix(":latest"), digest=digest or None)

    @classmethod
    def _parse_registry_name(cls, text: str) -> Self:
        try:
            found = RegistryName.parse(text)
        except ValueError as error:
            raise ImageNotFound.of(
                f"{text[:300]!r} is no image of a registry: {error}; write docker://python:3.13-slim "
                "or docker://registry.example/team/app@sha256:..."
            ) from None
        return cls(name=found.name, digest=found.digest or None, in_registry=found)


def is_digest(text: str) -> bool:
    """Whether `text` is ``sha256:`` and 64 hex digits."""
    return _DIGEST.fullmatch(text) is not None


def is_name(text: str) -> bool:
    """Whether `text` is a name, with or without a tag."""
    # A mistyped digest is not an image called "sha256".
    is_plain = _NAME.fullmatch(text) is not None and not text.startswith("sha256:")
    return is_plain and len(encode_name(text)) <= MAX_ENCODED_NAME


def is_registry_name(text: str) -> bool:
    """Whether `text` is a registry's name in full, as this host keeps it; with or without tag."""
    if not text.startswith(REGISTRY_PREFIX):
        return False
    try:
        found = RegistryName.parse(text)
    except ValueError:
        return False
    return found.name == text and not found.digest


@functools.lru_cache(maxsize=1024)
def encode_name(name: str) -> str:
    """Return the name as one path component. It never starts with a dot, since no name does."""
    encoded = quote(name, safe="")
    if len(encoded) > MAX_ENCODED_NAME and name.startswith(REGISTRY_PREFIX):
        return f"{encoded[:160]}.{hashlib.sha256(name.encode()).hexdigest()}"
    return encoded
