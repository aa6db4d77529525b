"""Parse ``sentinel://[USER:PASSWORD@]HOST[:PORT],HOST[:PORT].../SERVICE[/DB]``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl, quote, unquote, urlsplit

SENTINEL_PORT: Final = 26379
SENTINEL_SCHEMES: Final = ("sentinel", "sentinels")
"""The second one speaks TLS, with the sentinels and with Redis."""
_QUERY: Final = ("sentinel_username", "sentinel_password")
_FORM: Final = "must be sentinel://[:PASSWORD@]HOST:26379,HOST2:26379/SERVICE/0"


@dataclass(frozen=True)
class SentinelUrl:
    """The sentinels that know where the primary of `service` is, and who enters there."""

    addresses: tuple[tuple[str, int], ...]
    service: str
    db: int = 0
    username: str = ""
    password: str = ""
    sentinel_username: str = ""
    sentinel_password: str = ""
    uses_tls: bool = False

    @property
    def address(self) -> str:
        """The URL without users and passwords, for messages."""
        hosts = ",".join(_join(host, port) for host, port in self.addresses)
        return f"{SENTINEL_SCHEMES[self.uses_tls]}://{hosts}/{self.service}/{self.db}"

    def for_celery(self) -> str:
        """Return it as Celery and kombu spell it, for their option ``master_name`` beside it.

        One URL a sentinel, with semicolons between them. kombu takes user and password from the one
        it talks to.
        """
        secret = f"{quote(self.username, safe='')}:{quote(self.password, safe='')}@" if self.password else ""
        return ";".join(f"sentinel://{secret}{_join(host, port)}/{self.db}" for host, port in self.addresses)


def is_sentinel(url: str) -> bool:
    """Whether `url` names sentinels."""
    return url.partition("://")[0] in SENTINEL_SCHEMES


def parse_sentinel_url(url: str) -> SentinelUrl:
    """Parse a URL of sentinels.

    Raises:
        ValueError: it has another form. The message repeats nothing of it, since it may hold a
            password.
    """
    # Not by urlsplit: it refuses an IPv6 address behind another host.
    scheme, _, rest = url.partition("://")
    netloc, _, rest = rest.partition("/")
    path, _, text = rest.partition("?")
    credentials, _, hosts = netloc.rpartition("@")
    username, _, password = credentials.partition(":")
    service, _, db = path.partition("/")
    query = dict(parse_qsl(text))
    if not service or not (db or "0").isdecimal() or "#" in rest or query.keys() - set(_QUERY):
        raise ValueError(_FORM)
    return SentinelUrl(
        addresses=tuple(_parse_address(one) for one in hosts.split(",")),
        service=unquote(service),
        db=int(db or 0),
        username=unquote(username),
        password=unquote(password),
        sentinel_username=query.get("sentinel_username", ""),
        sentinel_password=query.get("sentinel_password", ""),
        uses_tls=scheme == SENTINEL_SCHEMES[1],
    )


def _parse_address(text: str) -> tuple[str, int]:
    """Parse ``host``, ``host:port`` or ``[::1]:port``."""
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:  # its message repeats the text
        host = port = None
    if not host:
        raise ValueError(_FORM)
    return host, SENTINEL_PORT if port is None else port


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
