"""Connect to an address that was checked, with one deadline for all that follows.

httpcore2 is the library, since its network backend chooses the address while TLS and Host keep the
name of the URL. It reads no proxy variables and follows no redirects.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import httpcore2

from sandfleet_web.notify.addresses import resolve

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterable


class CheckedBackend(httpcore2.NetworkBackend):
    """Resolves a name once, and connects to an address it has checked: DNS has no second say."""

    def __init__(self, *, allow_private: bool, connect_seconds: float, deadline: float) -> None:
        """`deadline` is the end of the attempt by the monotonic clock."""
        self._allow_private = allow_private
        self._connect_seconds = connect_seconds
        self._deadline = deadline
        self._plain = httpcore2.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ARG002  the deadline counts
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.NetworkStream:
        """Try the allowed addresses of `host` in turn; the last error is raised."""
        seconds = _left(self._deadline, self._connect_seconds)
        addresses = resolve(host, port, seconds=seconds, allow_private=self._allow_private)
        until = time.monotonic() + self._connect_seconds
        for number, address in enumerate(addresses, start=1):
            seconds = _left(self._deadline, until - time.monotonic())
            try:
                stream = self._plain.connect_tcp(address, port, seconds, local_address, socket_options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout):
                if number == len(addresses) or time.monotonic() >= until:
                    raise
            else:
                return DeadlineStream(stream, self._deadline, until)
        raise httpcore2.ConnectError("no address")


class DeadlineStream(httpcore2.NetworkStream):
    """A stream whose reads and writes all end at one deadline, however slow the other side is."""

    def __init__(self, stream: httpcore2.NetworkStream, deadline: float, tls_deadline: float) -> None:
        self._stream, self._deadline, self._tls_deadline = stream, deadline, tls_deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002  the deadline counts
        """Read what has come."""
        return self._stream.read(max_bytes, _left(self._deadline))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002  the deadline counts
        """Write all of `buffer`."""
        self._stream.write(buffer, _left(self._deadline))

    def close(self) -> None:
        """Close the connection."""
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002  the deadline counts
    ) -> httpcore2.NetworkStream:
        """Verify the server's certificate for the name of the URL."""
        seconds = _left(self._deadline, self._tls_deadline - time.monotonic())
        stream = self._stream.start_tls(ssl_context, server_hostname, seconds)
        return DeadlineStream(stream, self._deadline, self._tls_deadline)

    def get_extra_info(self, info: str) -> Any:
        """Return a fact of the connection, as httpcore2 asks for it."""
        return self._stream.get_extra_info(info)


def _left(deadline: float, bound: float | None = None) -> float:
    """Return the seconds until `deadline`, at most `bound`.

    Raises:
        httpcore2.ReadTimeout: none are left.
    """
    seconds = deadline - time.monotonic()
    seconds = seconds if bound is None else min(seconds, bound)
    if seconds <= 0:
        raise httpcore2.ReadTimeout("the deadline has passed")
    return seconds
