"""The pages over a real Redis and a real history: counts agree, a retry is done once, 20 viewers are one."""

from __future__ import annotations

import html
import json
import os
import re
import time
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from page_server import PageServer, new_users, running_pages
from past import Past
from sandfleet import SandboxSpec
from sandfleet_config.codes import ErrorCode
from sandfleet_config.outcome import Attempt
from sandfleet_web.history.writer import HistoryWriter
from sandfleet_web.pages.opening import open_site
from typer.testing import CliRunner
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sandfleet import Fleet
    from sandfleet_web.pages.site import Site
    from sandfleet_worker.delivery.ledger import Ledger

JOBS = int(os.environ.get("TEST_PAGES_JOBS", "400"))
"""Jobs of the batch with four codes."""
LARGE, PAGE_SECONDS = 100_000, 0.3
SHARES = {ErrorCode.OK: 0.7, ErrorCode.EXIT_NONZERO: 0.2, ErrorCode.TIMEOUT: 0.08, ErrorCode.WORKER_LOST: 0.02}
VIEWERS = 20


@pytest.fixture
def past(url: str, fleet: Fleet, ledger: Ledger, tmp_path: Path) -> Past:
    return Past(url, fleet, ledger, tmp_path)


@pytest.fixture
def site(past: Past) -> Site:
    return open_site(past.settings(), new_users())


@pytest.fixture
def pages(past: Past, site: Site) -> Iterator[PageServer]:
    """Serve the pages, with a writer of the history."""
    writer = HistoryWriter(past.settings())
    writer.start()
    try:
        with running_pages(site) as server:
            yield server
    finally:
        writer.stop()
        past.history.close()
        past.redis.close()


def new_spec(name: str = "x") -> SandboxSpec:
    return SandboxSpec(image="busybox", command=["true"], labels={"suite": name})


def end_batch(past: Past, batch: str, jobs: int) -> dict[str, int]:
    counts = {code: int(share * jobs) for code, share in SHARES.items()}
    for code, count in counts.items():
        for at in range(0, count, 500):
            past.end([new_spec()] * min(500, count - at), code, batch)
    return {code.value: count for code, count in counts.items()}


def read_counts(page: str) -> dict[str, int]:
    """Return the table of codes of a batch's page."""
    return {code: int(count.replace(",", "")) for code, count in re.findall(r'data-code="(\w+)">([0-9,]+)<', page)}


def measure(site: Site, pages: PageServer, page: str) -> float:
    """Return the least seconds of a page whose answers nobody has asked for yet."""
    found: list[float] = []
    for _ in range(5):
        site.reads.forget()
        before = time.perf_counter()
        pages.get(f"/fleet/{page}")
        found.append(time.perf_counter() - before)
    return min(found)


def test_page_command_line_api_and_all_outcomes_count_the_same(
    pages: PageServer, past: Past, fleet: Fleet, site: Site
) -> None:
    from sandfleet.cli.commands import app

    expected = end_batch(past, "counted", JOBS)
    assert read_counts(pages.get("/fleet/batch?name=counted")) == expected

    shown = CliRunner().invoke(app, ["batch", "show", "counted", "-o", "json"])
    assert json.loads(shown.stdout)["codes"] == expected
    (batch,) = json.loads(pages.get("/fleet/api/v1/batches"))["batches"]
    assert batch["codes"] == expected
    outcomes = fleet.batch("counted").outcomes()
    assert {code: sum(one.code.value == code for one in outcomes) for code in expected} == expected

    total = sum(expected.values())
    wait_until(lambda: past.read_number() >= total, 60, "the history has all")
    counted = {
        code: json.loads(pages.get(f"/fleet/api/v1/count?q=batch:counted+code:{code}"))["count"] for code in expected
    }
    assert counted == {code: min(count, 10_001) for code, count in expected.items()}
    if JOBS >= LARGE:  # a smaller batch says nothing about time
        shown_pages = (
            "batch?name=counted",
            "batches",
            "",
            "failures",
            "jobs?q=batch:counted",
            "jobs?q=batch:counted+code:OK",
        )
        took = {page: measure(site, pages, page) for page in shown_pages}
        print({page: f"{seconds * 1000:.0f} ms" for page, seconds in took.items()})  # noqa: T201  for `pytest -s`
        assert all(seconds < PAGE_SECONDS for seconds in took.values()), took


def test_a_batch_says_how_long_its_jobs_ran_and_waited(pages: PageServer, past: Past) -> None:
    now = datetime.now(UTC)
    for seconds in (1, 2, 3, 40):
        attempts = (Attempt(host="h", worker="h.1", started=now - timedelta(seconds=seconds)),)
        past.end([new_spec()], ErrorCode.TIMEOUT, "timed", attempts=attempts)
    past.end([new_spec()], ErrorCode.CANCELLED, "timed")
    wait_until(lambda: past.read_number() >= 5, 20, "the history has all")

    page = pages.get("/fleet/batch?name=timed")

    found = re.search(r"run median ([0-9.]+) s, p95 ([0-9]+) s", page)
    assert found is not None, page
    assert 2 <= float(found[1]) < 3
    assert 40 <= int(found[2]) < 60
    assert re.search(r'data-code="CANCELLED">1</td><td class="n">20 %</td><td class="n wide">- · -</td>', page)
    (all_of_it, *_) = json.loads(pages.get("/fleet/api/v1/times?q=batch:timed"))["times"]
    assert (all_of_it["code"], all_of_it["count"]) == ("", 5)
    assert 2 <= all_of_it["run_median"] < 3


def act(pages: PageServer, query: str, **more: Any) -> str:
    """Open the page of an act, and do it as it was shown; return the page of its result."""
    form = dict(pair.split("=", 1) for pair in query.split("&"))
    seen = re.search(r'name="seen" value="([0-9.]+)"', pages.get(f"/fleet/act?{urllib.parse.urlencode(form)}"))
    assert seen is not None
    answer = pages.ask("/fleet/act", form={**form, "seen": seen[1], **more})
    assert answer.status == 200, answer.text
    return answer.text


def read_done(page: str) -> tuple[int, int, int]:
    found = re.findall(r'id="(?:done|skipped|gone)">([0-9,]+)<', page)
    done, skipped, gone = (int(one.replace(",", "")) for one in found)
    return done, skipped, gone


def test_a_group_of_failures_is_retried_once(pages: PageServer, past: Past, fleet: Fleet) -> None:
    past.end([new_spec()] * 5, ErrorCode.TIMEOUT, "again", message="too slow")
    past.end([new_spec()] * 3, ErrorCode.EXIT_NONZERO, "again", message="exit 1")
    past.end([new_spec()] * 4, ErrorCode.OK, "again")
    wait_until(lambda: past.read_number() >= 12, 20, "the history has all")
    wait_until(lambda: "retry…" in pages.get("/fleet/batch?name=again"), 10, "its failures are grouped")
    link = re.search(r'href="act\?([^"]*)" aria-label="Retry this group, TIMEOUT"', pages.get("/fleet/failures"))
    assert link is not None
    query = urllib.parse.unquote_plus(html.unescape(link[1]))
    shown = pages.get(f"/fleet/act?{html.unescape(link[1])}")
    assert "5 jobs match now" in shown
    seen = re.search(r'name="seen" value="([0-9.]+)"', shown)
    assert seen is not None
    form = dict(pair.split("=", 1) for pair in query.split("&")) | {"seen": seen[1], "reason": "a fixed image"}
    assert read_done(pages.ask("/fleet/act", form=form).text) == (5, 0, 0)
    # A second click, and one after the jobs have failed again.
    assert read_done(pages.ask("/fleet/act", form=form).text)[0] == 0
    rerun_all(past, "again", ErrorCode.TIMEOUT)
    wait_until(lambda: past.read_number() >= 17, 20, "the history has the later runs")
    assert read_done(pages.ask("/fleet/act", form=form).text)[0] == 0
    assert fleet.batch("again").codes == {"TIMEOUT": 5, "EXIT_NONZERO": 3, "OK": 4}
    assert pages.get("/fleet/audit").count("a fixed image") == 3


def test_a_group_on_a_batchs_page_is_retried_in_that_batch_alone(pages: PageServer, past: Past, fleet: Fleet) -> None:
    for batch in ("mine", "anothers"):
        past.end([new_spec()] * 3, ErrorCode.TIMEOUT, batch, message="too slow")
    wait_until(lambda: past.read_number() >= 6, 20, "the history has all")
    link = re.search(r'href="act\?([^"]*)" aria-label="Retry this group, TIMEOUT"', pages.get("/fleet/batch?name=mine"))
    assert link is not None
    query = urllib.parse.unquote_plus(html.unescape(link[1]))

    assert "3 jobs match now" in pages.get(f"/fleet/act?{html.unescape(link[1])}")
    assert read_done(act(pages, query)) == (3, 0, 0)

    assert fleet.batch("anothers").codes == {"TIMEOUT": 3}
    everywhere = re.search(r'href="jobs\?([^"]*)" aria-label="Runs of this kind', pages.get("/fleet/failures?since=1h"))
    assert everywhere is not None
    words = urllib.parse.unquote_plus(html.unescape(everywhere[1]))
    assert words.startswith("q=image:busybox fingerprint:")
    assert " since:" in words, "of the time that was chosen"


def rerun_all(past: Past, batch: str, code: ErrorCode) -> None:
    """End all queued jobs of the fleet."""
    past.end([], code, batch)
    from sandfleet_config.outcome import Outcome
    from sandfleet_config.queues import DEFAULT_QUEUE

    number = 0
    while (claim := past.ledger.claim(f"again-{time.monotonic_ns()}", [DEFAULT_QUEUE])[0]) is not None:
        number += 1
        facts = {"batch": batch, "run": int(past.redis.hget(f"sandfleet:job:{claim.job_id}", "run") or 1)}
        assert past.ledger.finish(claim, Outcome.of(code, claim.job_id, "too slow", **facts))
    assert number == 5


def test_a_batchs_code_and_one_job_are_retried_and_cancelled(pages: PageServer, past: Past, fleet: Fleet) -> None:
    (job_id, *_) = past.end([new_spec()] * 3, ErrorCode.TIMEOUT, "steps")
    past.end([new_spec()] * 2, ErrorCode.WORKER_LOST, "steps")
    assert read_done(act(pages, f"verb=retry&job={job_id}")) == (1, 0, 0)
    assert read_done(act(pages, "verb=retry&batch=steps&code=WORKER_LOST")) == (2, 0, 0)
    assert read_done(act(pages, "verb=retry&batch=steps")) == (2, 0, 0)
    assert read_done(act(pages, "verb=cancel&batch=steps", reason="enough")) == (5, 0, 0)
    wait_until(lambda: fleet.batch("steps").codes == {"CANCELLED": 5}, 10, "all are cancelled")


@pytest.mark.parametrize(
    ("verb", "words"),
    [("cancel", '""'), ("cancel", "newest:yes"), ("retry", '""'), ("retry", "state:ended"), ("retry", "newest:yes")],
)
def test_a_search_that_leaves_out_nothing_is_no_filter(
    pages: PageServer, past: Past, fleet: Fleet, verb: str, words: str
) -> None:
    past.end([new_spec()], ErrorCode.TIMEOUT, "old")
    job = fleet.submit(new_spec())
    wait_until(lambda: past.read_number() >= 1, 20, "the history has it")
    query = urllib.parse.urlencode({"verb": verb, "q": words})

    answer = pages.ask(f"/fleet/act?{query}")

    assert (answer.status, "leaves out nothing" in answer.text) == (400, True)
    form = {"verb": verb, "q": words, "reason": "x", "seen": str(time.time())}
    assert pages.ask("/fleet/act", form=form).status == 400
    assert not job.is_done


def test_dead_letters_are_requeued_and_purged_from_the_page(pages: PageServer, past: Past, fleet: Fleet) -> None:
    spec = new_spec()
    for _ in range(3):
        job = fleet.submit(spec)
        claim, _ = past.ledger.claim(f"dead-{job.id}", ["sandfleet"])
        assert claim is not None
        from sandfleet_config.outcome import Outcome

        assert past.ledger.finish(claim, Outcome.of(ErrorCode.WORKER_LOST, job.id, "lost"), reason="no attempt is left")
    assert "3 dead letters" in pages.get("/fleet/")
    assert read_done(act(pages, "verb=requeue"))[0] == 3
    time.sleep(1.1)
    assert "dead letters: jobs that the fleet failed" not in pages.get("/fleet/")


def test_a_queue_without_a_worker_is_named_within_seconds(pages: PageServer, past: Past, fleet: Fleet) -> None:
    past.redis.delete("sandfleet:owners")  # the stand-in has announced no queues, and so might serve any
    fleet.submit_many([new_spec()] * 7, queue="nobody-takes-it")
    wait_until(lambda: "queue nobody-takes-it is not served: 7 jobs" in pages.get("/fleet/"), 5, "it is named")
    assert "No live worker takes jobs of this queue" in pages.get("/fleet/queue?name=nobody-takes-it")


def test_twenty_viewers_cost_redis_what_one_costs(pages: PageServer, past: Past) -> None:
    past.end([new_spec()] * 20, ErrorCode.OK, "seen")

    def count_commands(viewers: int) -> int:
        def view(_: int) -> None:
            until = time.monotonic() + 4
            while time.monotonic() < until:
                pages.get("/fleet/")
                time.sleep(0.5)

        before = read_commands(past.redis)
        with ThreadPoolExecutor(viewers) as pool:
            list(pool.map(view, range(viewers)))
        return read_commands(past.redis) - before

    one, twenty = count_commands(1), count_commands(VIEWERS)
    assert twenty <= 1.3 * one + 20, (one, twenty)


def read_commands(client: Any) -> int:
    """Return how many commands Redis has run, without those of the history's writer, which polls by itself."""
    found: dict[str, Any] = client.info("commandstats")
    own = {"cmdstat_info", "cmdstat_xread", "cmdstat_xrange", "cmdstat_xinfo|stream", "cmdstat_ping", "cmdstat_multi"}
    return sum(int(one["calls"]) for name, one in found.items() if name not in own)
