"""Pictures made by the server: SVG without styles of its own, each with the same in words.

Colours come from the style sheet, by class, so that they follow light and dark.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from sandfleet_web.pages.categories import count_categories
from sandfleet_web.pages.text import Markup, clean, count, duration, link, plural

if TYPE_CHECKING:
    from sandfleet.overview.summary import BatchSummary

    from sandfleet_web.pages.hosts import Host

CATEGORIES: Final = ("ok", "program", "limit", "request", "control", "host")
"""In the order in which they are stacked and listed."""
WIDTH: Final = 1000
_HOST_CSS: Final[Mapping[str, str]] = {"up": "ok", "odd": "host", "late": "host", "absent": "control"} | dict.fromkeys(
    ("cordoned", "draining", "drained", "stopping"), "program"
)


def _text(value: str) -> str:
    return html.escape(clean(value))


def _round(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _svg(label: str, height: int, body: Sequence[str], *, css: str, width: int = WIDTH) -> Markup:
    """Return a picture that stretches to its place; `label` is what readers of screens hear."""
    return Markup(
        f'<svg class="chart {css}" role="img" aria-label="{_text(label)}" viewBox="0 0 {width} {height}"'
        f' preserveAspectRatio="none">{"".join(body)}</svg>'
    )


@dataclass(frozen=True)
class Part:
    """A part of a bar: its class in the style sheet, its size, and its name."""

    css: str
    value: float
    name: str = ""


def bar(parts: Sequence[Part], whole: float, label: str) -> Markup:
    """Draw one bar of parts; what is left of `whole` stays empty."""
    body, at = ['<rect class="track" x="0" y="0" width="1000" height="10"/>'], 0.0
    for part in parts:
        if part.value <= 0 or whole <= 0:
            continue
        width = min(part.value / whole, 1) * WIDTH
        title = f"<title>{_text(part.name)}</title>" if part.name else ""
        body.append(
            f'<rect class="fill {part.css}" x="{_round(at)}" y="0" width="{_round(width)}" height="10">{title}</rect>'
        )
        at += width
    return _svg(label, 10, body, css="bar")


def meter(value: float, whole: float, label: str, css: str = "used") -> Markup:
    """Draw a bar with one part."""
    return bar([Part(css, value)], whole, label)


def waiting_bar(waiting: int, most: int, age: float, target: float) -> Markup:
    """Draw how many jobs of a queue wait, and below it how old the oldest is against its target."""
    share = min(waiting / most, 1) if most else 0
    # The end of the scale is twice the target: a mark in the middle.
    old = min(age / (2 * target), 1)
    css = "late" if age > target else "fine"
    label = plural(waiting, "job waits", "jobs wait")
    label += f"; the oldest has waited {duration(age)}, its target is {duration(target)}"
    body = [
        '<rect class="track" x="0" y="0" width="1000" height="8"/>',
        f'<rect class="fill used" x="0" y="0" width="{_round(share * WIDTH)}" height="8"/>',
        '<rect class="track" x="0" y="12" width="1000" height="6"/>',
        f'<rect class="fill {css}" x="0" y="12" width="{_round(old * WIDTH)}" height="6"/>',
        '<rect class="mark" x="498" y="10" width="4" height="10"/>',
    ]
    return _svg(label, 20, body, css="waiting")


@dataclass
class Columns:
    """Counts by category in equal steps of time, the oldest first."""

    start: float
    step: float
    columns: list[dict[str, int]] = field(default_factory=list[dict[str, int]])

    @property
    def totals(self) -> dict[str, int]:
        """The counts of all steps by category, in the fixed order, without zeros."""
        sums = {name: sum(column.get(name, 0) for column in self.columns) for name in CATEGORIES}
        return {name: number for name, number in sums.items() if number}

    @property
    def total(self) -> int:
        """The count of all."""
        return sum(self.totals.values())


def stacked(columns: Columns, label: str) -> Markup:
    """Draw columns of categories, stacked."""
    most = max((sum(column.values()) for column in columns.columns), default=0)
    number = max(1, len(columns.columns))
    step = WIDTH / number
    body = ['<rect class="track" x="0" y="199" width="1000" height="1"/>']
    for index, column in enumerate(columns.columns):
        at = 200.0
        for name in CATEGORIES:
            value = column.get(name, 0)
            if not value:
                continue
            height = 196 * value / most
            at -= height
            body.append(
                f'<rect class="fill {name}" x="{_round(index * step)}" y="{_round(at)}"'
                f' width="{_round(max(1.0, step - 2))}" height="{_round(height)}"/>'
            )
    words = ", ".join(f"{name} {count(value)}" for name, value in columns.totals.items()) or "none"
    return _svg(f"{label}: {words}", 200, body, css="stack")


def trend(counts: Sequence[int], label: str, css: str = "host") -> Markup:
    """Draw small columns, such as how often a failure was seen."""
    most, number = max(counts, default=0), max(1, len(counts))
    step = WIDTH / number
    body = [
        f'<rect class="fill {css}" x="{_round(index * step)}" y="{_round(100 - 100 * value / most)}"'
        f' width="{_round(max(1.0, step - 6))}" height="{_round(100 * value / most)}"/>'
        for index, value in enumerate(counts)
        if value and most
    ]
    return _svg(label, 100, body, css="trend")


@dataclass(frozen=True)
class Span:
    """A stretch of time on a job's timeline; `end` None: it goes on."""

    name: str
    css: str
    start: float
    end: float | None


def timeline(spans: Sequence[Span], now: float) -> Markup:
    """Draw stretches of time in lines of one scale, each beside its name and its length."""
    known = [span for span in spans if span.start]
    if not known:
        return Markup("")
    first, last = min(span.start for span in known), max(span.end or now for span in known)
    scale = WIDTH / max(last - first, 0.001)
    lines: list[str] = []
    for span in known:
        start, end = (span.start - first) * scale, ((span.end or now) - first) * scale
        words = f"{clean(span.name, 120)}, {duration((span.end or now) - span.start)}{'' if span.end else ' so far'}"
        lines.append(
            f'<li><span>{_text(words)}</span><svg class="chart bar" aria-hidden="true" viewBox="0 0 {WIDTH} 10"'
            f' preserveAspectRatio="none"><rect class="track" width="{WIDTH}" height="10"/><rect class="fill {span.css}"'
            f' x="{_round(min(start, WIDTH - 4.0))}" width="{_round(max(4.0, end - start))}" height="10"/></svg></li>'
        )
    return Markup(f'<ol class="timeline">{"".join(lines)}</ol>')


def slots(states: Sequence[tuple[str, str, str]], label: str) -> Markup:
    """Draw a host's slots as squares: (class, name, address) of each, an address makes it a link."""
    squares: list[str] = []
    for css, name, address in states:
        square = (
            '<svg class="slot" viewBox="0 0 10 10" aria-hidden="true">'
            f'<rect class="fill {css}" width="10" height="10" rx="2"/><title>{_text(name)}</title></svg>'
        )
        if address:
            square = f'<a class="slot-link" href="{html.escape(address)}" aria-label="{_text(name)}">{square}</a>'
        squares.append(square)
    return Markup(f'<span class="slots" role="group" aria-label="{_text(label)}">{"".join(squares)}</span>')


def hosts_strip(hosts: Sequence[Host]) -> Markup:
    """Draw hosts as small squares, each a link, coloured by their state."""
    squares = [
        (
            _HOST_CSS.get("odd" if host.is_odd else host.state, "late"),
            _say_host(host),
            link("host", name=host.name),
        )
        for host in hosts
    ]
    return slots(squares, plural(len(hosts), "host"))


def _say_host(host: Host) -> str:
    odd = ", fails far more often than others" if host.is_odd else ""
    return f"{host.name}: {host.state}{odd}, {host.busy} of {plural(host.slots, 'slot')} busy"


def batch_bar(batch: BatchSummary) -> Markup:
    """Draw how far a batch is, by category."""
    codes = count_categories(batch.codes)
    parts = [Part(name, codes[name], f"{name} {count(codes[name])}") for name in CATEGORIES if codes.get(name)]
    words = ", ".join(part.name for part in parts) or "none yet"
    return bar(parts, batch.total, f"{count(batch.ended)} of {count(batch.total)} ended: {words}")
