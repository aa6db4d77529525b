"""The endpoints of the settings, with their secrets and certificates read."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ssl
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from sandfleet_config.settings import SettingsInvalid

if TYPE_CHECKING:
    from pathlib import Path

    from sandfleet_config.web_settings import EndpointSettings, WebSettings

SECRET_PREFIX: Final = "whsec_"  # noqa: S105  how every secret begins
MIN_SECRET_BYTES, MAX_SECRET_BYTES = 24, 64
MAX_SECRETS: Final = 4
MAX_FILE_BYTES: Final = 4096


@dataclass(frozen=True)
class Endpoint:
    """A receiver of webhooks, ready to be sent to."""

    name: str
    url: str = field(repr=False)
    secrets: tuple[bytes, ...] = field(repr=False)
    allow_private: bool
    tls: ssl.SSLContext = field(repr=False)

    def sign(self, webhook_id: str, timestamp: int, body: bytes) -> str:
        """Return the header ``webhook-signature``.

        It has a signature by each secret (Standard Webhooks, v1).
        """
        content = b"%s.%d.%s" % (webhook_id.encode(), timestamp, body)
        digests = [hmac.new(secret, content, hashlib.sha256).digest() for secret in self.secrets]
        return " ".join(f"v1,{base64.b64encode(digest).decode()}" for digest in digests)


def read_endpoints(settings: WebSettings) -> dict[str, Endpoint]:
    """Read the endpoints of the settings.

    Raises:
        SettingsInvalid: a file of one cannot be used; the message names each fault, and no secret.
    """
    found: dict[str, Endpoint] = {}
    faults: list[str] = []
    for name, given in settings.web.endpoints.items():
        try:
            found[name] = _read_endpoint(name, given)
        except (OSError, ValueError) as error:
            faults.append(f"endpoint {name}: {error}")
    if faults:
        raise SettingsInvalid("; ".join(faults))
    return found


def _read_endpoint(name: str, given: EndpointSettings) -> Endpoint:
    secrets = read_secrets(given.secret_file)
    try:
        tls = ssl.create_default_context(cafile=given.ca_file)
    except ssl.SSLError:
        msg = f"ca_file {given.ca_file} has no certificates in PEM form"
        raise ValueError(msg) from None
    return Endpoint(name, given.url.get_secret_value(), secrets, given.allow_private, tls)


def read_secrets(path: Path) -> tuple[bytes, ...]:
    """Return the secrets of a file, one a line.

    Raises:
        OSError: it cannot be read.
        ValueError: others may read it, or a line is no secret.
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) or mode & 0o077:
        msg = f"secret_file {path} must be a file that only its owner can read: chmod 600 {path}"
        raise ValueError(msg)
    with path.open("rb") as file:
        lines = file.read(MAX_FILE_BYTES + 1).split(b"\n")
    secrets = tuple(_parse_secret(line.strip(), path) for line in lines if line.strip())
    if not 0 < len(secrets) <= MAX_SECRETS:
        msg = f"secret_file {path} must have 1 to {MAX_SECRETS} lines"
        raise ValueError(msg)
    return secrets


def _parse_secret(line: bytes, path: Path) -> bytes:
    try:
        secret = base64.b64decode(line.removeprefix(SECRET_PREFIX.encode()), validate=True)
    except binascii.Error:
        secret = b""
    if not line.startswith(SECRET_PREFIX.encode()) or not MIN_SECRET_BYTES <= len(secret) <= MAX_SECRET_BYTES:
        msg = (
            f"secret_file {path}: each line must be {SECRET_PREFIX} and the base64 of {MIN_SECRET_BYTES} to"
            f" {MAX_SECRET_BYTES} random bytes; sandfleet-web notify new-secret {path} makes one"
        )
        raise ValueError(msg)
    return secret
