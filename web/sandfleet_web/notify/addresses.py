"""The addresses a webhook may go to: public ones, unless its endpoint allows private ones."""

from __future__ import annotations

import socket
import threading
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Final

NAT64: Final = IPv6Network("64:ff9b::/96")
"""RFC 6052: the last 32 bits are an IPv4 address."""
LOCAL_NAT64: Final = IPv6Network("64:ff9b:1::/48")
"""RFC 8215: addresses of any IPv4 network, a private one too."""


class AddressRefused(Exception):
    """The receiver's name has no address that a webhook may go to.

    The message names each address with its reason.
    """


class NameUnknown(Exception):
    """The receiver's name has no address, or DNS did not answer in time."""


def find_refusal(address: str, *, allow_private: bool) -> str:
    """Return why a webhook may not go to `address`; empty if it may.

    An IPv6 address that carries an IPv4 one is as good as that: IPv4-mapped, 6to4, Teredo, NAT64.
    """
    found = ip_address(address.partition("%")[0])
    if found.is_multicast:
        return "is a multicast address"
    if found.is_unspecified:
        return "is no address of a host"
    if allow_private:
        return ""
    if isinstance(found, IPv6Address):
        if found in LOCAL_NAT64 or found.is_site_local:
            return "is a private address"
        if (inner := _find_inner(found)) is not None:
            return find_refusal(str(inner), allow_private=False)
    if found.is_loopback:
        return "is a loopback address"
    if found.is_link_local:
        return "is a link-local address"
    if found.is_private or not found.is_global:
        return "is a private address"
    return "is a reserved address" if found.is_reserved else ""


def _find_inner(address: IPv6Address) -> IPv4Address | None:
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address.teredo is not None:
        return address.teredo[1]
    return IPv4Address(int(address) & 0xFFFFFFFF) if address in NAT64 else None


def resolve(host: str, port: int, *, seconds: float, allow_private: bool) -> list[str]:
    """Return the addresses of `host` that a webhook may go to, in the order of the resolver.

    Raises:
        NameUnknown: it has none, or there is no answer after `seconds`.
        AddressRefused: it has addresses, and a webhook may go to none of them.
    """
    found = list(dict.fromkeys(_ask_resolver(host, port, seconds)))
    refusals = {address: find_refusal(address, allow_private=allow_private) for address in found}
    allowed = [address for address, refusal in refusals.items() if not refusal]
    if not allowed:
        told = ", ".join(f"{address} {refusal}" for address, refusal in list(refusals.items())[:4])
        msg = f"the receiver's address {told}: the endpoint's allow_private would allow it"
        raise AddressRefused(msg if not allow_private else msg.partition(":")[0])
    return allowed


def _ask_resolver(host: str, port: int, seconds: float) -> list[str]:
    """Ask the system's resolver in a thread that may be left behind.

    The resolver has no deadline of its own.
    """
    found: list[str] = []
    errors: list[Exception] = []

    def ask() -> None:
        try:
            found.extend(str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            errors.append(error)

    thread = threading.Thread(target=ask, daemon=True, name="resolve")
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise NameUnknown(f"DNS did not answer within {seconds:g} s")
    if errors or not found:
        raise NameUnknown(f"the receiver's name has no address ({errors[0] if errors else 'no answer'})")
    return found
