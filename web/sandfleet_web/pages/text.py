"""Text on a page: untrusted words made safe, and numbers as people read them."""

from __future__ import annotations

import html
import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode

from sandfleet.history.questions import HistoryFilter
from sandfleet.history.words import Words, format_words
from sandfleet_config.terminal import safe_text
from sandfleet_config.units import choose_noun

if TYPE_CHECKING:
    from sandfleet.history.questions import FailureGroup

MAX_SHOWN: Final = 500
"""Longest text of one value on a page, in characters."""
_UNITS: Final = ((86400, "d"), (3600, "h"), (60, "min"))
_SIZES: Final = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))
_TEN: Final = 10


class Markup(str):
    """Text that is HTML already: templates leave it as it is. Only code of ours makes it."""

    __slots__ = ()


class SafeBytes(bytes):
    """`Markup` on its way through a template."""

    __slots__ = ()


def encode(value: str | bytes | None) -> bytes | None:
    """Return a value as UTF-8, as tornado's templates ask for.

    JSON may hold half characters (lone surrogates), of which tornado's own function would fail.
    """
    if value is None or isinstance(value, bytes):
        return value
    encoded = value.encode(errors="backslashreplace")
    return SafeBytes(encoded) if isinstance(value, Markup) else encoded


def show(value: bytes) -> bytes:
    """Return a value as HTML: bounded, with control and bidirectional characters spelled out.

    Templates call it for each value that they write.
    """
    if isinstance(value, SafeBytes):
        return value
    return html.escape(clean(value.decode(errors="replace"))).encode()


def address(page: str) -> Markup:
    """Return an address as the value of an attribute, whole."""
    return Markup(html.escape(page))


def link_attribute(page: str, /, **query: object) -> Markup:
    """Return what `link` does as the value of an attribute."""
    return address(link(page, **query))


def clean(text: str, length: int = MAX_SHOWN) -> str:
    """Return a text on one line, cut, in which no character changes how others are shown."""
    cut = text if len(text) <= length else f"{text[:length]}…"
    return safe_text(cut).replace("\n", " ").replace("\t", " ").encode(errors="backslashreplace").decode()


def link(page: str, /, **query: object) -> str:
    """Return the address of a page, relative to any other page."""
    given = {name: value for name, value in query.items() if value not in ("", None)}
    return f"{page}?{urlencode(given, errors='surrogatepass')}" if given else page


def word(name: str, value: str) -> str:
    """Return a word of a search, such as ``batch:nightly``."""
    given: dict[str, Any] = {name: value}
    return format_words(Words(replace(HistoryFilter(), **given)))


def group_words(group: FailureGroup, scope: HistoryFilter) -> str:
    """Return the words of a search for the runs of a group, of those in `scope` alone."""
    return format_words(Words(replace(scope, fingerprint=group.fingerprint, image=group.image)))


def count(number: float) -> str:
    """Return a number as ``12,345``."""
    return f"{number:,.0f}"


def plural(number: int, noun: str, many: str = "") -> str:
    """Return ``1 job`` or ``2 jobs``."""
    return f"{number:,} {choose_noun(number, noun, many)}"


def share(part: float, whole: float) -> str:
    """Return a part in per cent, ``-`` of nothing; ``0 %`` is said of nothing but none."""
    if not whole:
        return "-"
    percent = 100 * part / whole
    if 0 < percent < 0.1:  # noqa: PLR2004
        return "< 0.1 %"
    return f"{percent:.0f} %" if percent in (0, 100) or percent >= _TEN else f"{percent:.1f} %"


def duration(seconds: float | None) -> str:
    """Return ``0.34 s``, ``12 s``, ``4 min 12 s``, ``5 h 3 min`` or ``2 d 4 h``; ``-`` for None."""
    if seconds is None:
        return "-"
    whole = max(0.0, seconds)
    if whole < _TEN:
        return f"{whole:.2g} s" if whole < 1 or whole == int(whole) else f"{whole:.1f} s"
    left = int(whole)
    words: list[str] = []
    for size, name in _UNITS:
        if left >= size:
            words.append(f"{left // size} {name}")
            left %= size
        elif words:
            break
        if len(words) == 2:  # noqa: PLR2004  two units tell enough
            return " ".join(words)
    if left and (not words or words[-1].endswith("min")):
        words.append(f"{left} s")
    return " ".join(words)


def ago(at: float, now: float) -> str:
    """Return how long ago a unix time was; ``-`` if it is not known."""
    return f"{duration(max(0.0, now - at) // 1)} ago" if at else "-"


def clock(at: float) -> str:
    """Return a unix time as ``12:43:14`` (UTC); with its day if that is not today's."""
    if not at:
        return "-"
    try:
        moment = datetime.fromtimestamp(at, UTC)
    except (OverflowError, ValueError, OSError):
        return "-"
    today = datetime.fromtimestamp(time.time(), UTC).date()
    return f"{moment:%H:%M:%S}" if moment.date() == today else f"{moment:%Y-%m-%d %H:%M:%S}"


def stamp(at: float) -> str:
    """Return a unix time as ISO 8601 in UTC for the attribute ``datetime``; empty if not known."""
    try:
        return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds") if at else ""
    except (OverflowError, ValueError, OSError):
        return ""


def size(number: float) -> str:
    """Return bytes as ``1.5 GiB``."""
    for unit, name in _SIZES:
        if number >= unit:
            value = number / unit
            return f"{value:.0f} {name}" if value >= _TEN or value == int(value) else f"{value:.1f} {name}"
    return f"{number:.0f} B"


def short_id(job_id: str) -> str:
    """Return the start of a job's id, as far as a table shows it."""
    return job_id if len(job_id) <= 13 else f"{job_id[:8]}…"  # noqa: PLR2004
