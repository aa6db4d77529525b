"""The parts of the pages that need no server: text, charts, hosts that fail."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from pages_scene import NOW, new_scene
from sandfleet.overview.host_failures import HostFailures
from sandfleet_web.pages import charts, text
from sandfleet_web.pages.hosts import group_hosts
from sandfleet_web.pages.needs import find_needs
from sandfleet_web.pages.paging import cut_page
from sandfleet_web.pages.site import STATIC, TEMPLATES

if TYPE_CHECKING:
    from sandfleet.channel.fleet_state import FleetSummary


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (None, "-"), (0, "0 s"), (0.034, "0.034 s"), (2.0, "2 s"), (2.34, "2.3 s"), (59, "59 s"), (252, "4 min 12 s"),
        (3600, "1 h"), (3661, "1 h 1 min"), (90_000, "1 d 1 h"), (-5, "0 s"),
    ],
)  # fmt: skip
def test_durations_read_as_people_say_them(seconds: float | None, expected: str) -> None:
    assert text.duration(seconds) == expected


@pytest.mark.parametrize(
    ("part", "whole", "expected"),
    [(0, 0, "-"), (0, 5, "0 %"), (5, 5, "100 %"), (1, 3, "33 %"), (1, 100, "1.0 %"), (1, 10_000, "< 0.1 %")],
)
def test_a_share_that_is_not_none_is_not_zero(part: float, whole: float, expected: str) -> None:
    assert text.share(part, whole) == expected


def test_text_is_escaped_cut_and_shows_what_would_hide() -> None:
    hostile = "<script>\u202e\x1b[31m\ud800" + "A" * 10_000
    encoded = text.encode(hostile)
    assert encoded is not None
    shown = text.show(encoded).decode()
    assert shown.startswith("&lt;script&gt;\\u202e\\x1b[31m")
    assert len(shown) < 1000
    assert text.show(text.encode(text.Markup("<b>")) or b"") == b"<b>"


@pytest.mark.parametrize("at", [1e30, -1e30, float("inf"), float("nan")])
def test_a_forged_time_is_no_error(at: float) -> None:
    assert text.clock(at) == "-"
    assert text.stamp(at) == ""


def test_templates_write_no_value_past_the_escaping() -> None:
    for path in TEMPLATES.glob("*.html"):
        content = path.read_text()
        assert "{% raw" not in content, path.name
        assert "{% autoescape" not in content, path.name
        assert not re.search(r"<script(?! src=)|\sstyle=|\son\w+=|javascript:", content), path.name
        assert not re.search(r"\s[\w-]+=\{\{", content), f"{path.name}: an attribute without quotes"


def test_nothing_names_another_address() -> None:
    for path in [*TEMPLATES.iterdir(), *STATIC.iterdir()]:
        content = path.read_text().replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert not re.search(r"https?://|//[a-z]+\.", content), path.name


def test_charts_have_their_content_in_words_too() -> None:
    columns = charts.Columns(NOW, 60, [{"ok": 3, "host": 1}, {}, {"ok": 2}])
    assert 'aria-label="Ended runs: ok 5, host 1"' in charts.stacked(columns, "Ended runs")
    bar = charts.waiting_bar(412, 17_430, 671, 300)
    assert "412 jobs wait; the oldest has waited 11 min 11 s, its target is 5 min" in bar
    assert "fill late" in bar
    spans = [charts.Span("attempt 1 on <h>", "host", NOW - 100, NOW - 40), charts.Span("waits", "wait", NOW - 40, None)]
    assert "attempt 1 on &lt;h&gt;, 1 min" in charts.timeline(spans, NOW)
    assert "waits, 40 s so far" in charts.timeline(spans, NOW)


@pytest.mark.parametrize(
    ("runs", "failed", "others", "others_failed", "expected"),
    [
        (100, 9, 10_000, 20, True),
        (100, 4, 10_000, 20, False),
        (19, 19, 10_000, 20, False),
        (100, 20, 1000, 100, False),
        (100, 9, 0, 0, True),
    ],
)
def test_a_host_is_odd_that_fails_far_more_often_than_the_others(
    runs: int,
    failed: int,
    others: int,
    others_failed: int,
    expected: bool,  # noqa: FBT001  by table
) -> None:
    assert HostFailures(runs, failed, others, others_failed).is_odd is expected


def needs_of(summary: FleetSummary, lag: float = 0.0) -> list[str]:
    return [
        need.text for need in find_needs(summary, group_hosts(summary), None, loop_lag=lag, age_target=lambda _: 300)
    ]


def test_a_paused_queue_needs_nobody_and_a_slow_one_does() -> None:
    needs = needs_of(new_scene().state.summary)
    assert [need for need in needs if "imports" in need] == []
    assert any("rl-eval is not served" in need for need in needs)
    assert any("its loop is 0.8 s late" in need for need in needs_of(new_scene().state.summary, 0.8))


def test_a_page_of_rows_is_one_that_there_is() -> None:
    rows = list(range(120))
    assert [cut_page(rows, wanted).number for wanted in ("", "1", "3", "4", "x", "0", "99999999")] == [
        1,
        1,
        3,
        3,
        1,
        1,
        1,
    ]
    assert (cut_page([], "7").total, cut_page(rows, "3").first, cut_page(rows, "3").last) == (0, 101, 120)
