"""The parts of the pages that need no server: text, charts, users, hosts that fail."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pages_scene import NOW, new_scene
from sandfleet_config.settings import SettingsInvalid
from sandfleet_web.pages import charts, text
from sandfleet_web.pages.hosts import Failures, group_hosts
from sandfleet_web.pages.needs import find_needs
from sandfleet_web.pages.paging import cut_page
from sandfleet_web.pages.site import STATIC, TEMPLATES
from sandfleet_web.pages.users import TooManyChecks, Users, add_user, parse_basic

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
    assert Failures(runs, failed, others, others_failed).is_odd is expected


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


def test_users_are_kept_hashed_and_changed_in_place(tmp_path: Path) -> None:
    path = tmp_path / "users"
    add_user(path, "ann", "viewer", "a-first-secret")
    add_user(path, "bob", "viewer", "another-secret")
    add_user(path, "ann", "operator", "a-second-secret")
    assert "secret" not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    users = Users(path)

    async def check() -> list[object]:
        return [
            await users.check("ann", "a-first-secret"),
            getattr(await users.check("ann", "a-second-secret"), "role", None),
            getattr(await users.check("bob", "another-secret"), "role", None),
            await users.check("bob", "another-secret\0"),
        ]

    assert asyncio.run(check()) == [None, "operator", "viewer", None]


@pytest.mark.parametrize(
    "line",
    [
        "ann",
        "ann viewer",
        "ann admin x",
        "ann viewer x",
        "ann viewer scrypt:x:y",
        "a/b viewer scrypt:YQ==:YQ==",
        "ann viewer md5:YQ==:YQ==",
    ],
)
def test_a_faulty_line_is_refused_and_not_repeated(tmp_path: Path, line: str) -> None:
    path = tmp_path / "users"
    path.write_text(f"# people\n\n{line}\n")
    with pytest.raises(SettingsInvalid, match="line 3") as raised:
        Users(path)
    assert "YQ==" not in str(raised.value)


def test_a_token_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text(f"prometheus viewer {'t' * 32}\n")
    path.chmod(0o644)
    with pytest.raises(SettingsInvalid, match="chmod 600"):
        Users(token_file=path)
    path.chmod(0o600)
    users = Users(token_file=path)
    assert getattr(users.find_token("t" * 32), "name", None) == "prometheus"
    assert users.find_token("t" * 31) is None


def test_many_guesses_at_once_are_refused() -> None:
    users = Users(extra={"ann": ("viewer", "the-right-one")})

    async def guess() -> int:
        found = await asyncio.gather(*(users.check("ann", f"guess-{n}") for n in range(40)), return_exceptions=True)
        return sum(isinstance(one, TooManyChecks) for one in found)

    assert asyncio.run(guess()) >= 20


@pytest.mark.parametrize("header", ["", "Basic", "Bearer x", "Basic !!!", "Basic Zm9v", "Basic /w=="])
def test_a_header_that_is_no_login_is_none(header: str) -> None:
    assert parse_basic(header) is None
