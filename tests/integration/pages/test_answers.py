"""The pages say where the data is old, out of reach or too much, and what needs a person."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from page_server import PageServer
from pages_scene import JOB, NOW, WAITING_JOB, Scene
from sandfleet.channel.fleet_state import WorkerStatus
from sandfleet.errors import FleetError, FleetUnavailable
from sandfleet.history.questions import HistoryStatus
from sandfleet_web.pages.paging import ROWS

if TYPE_CHECKING:
    from sandfleet_web.pages.site import Site


def test_the_overview_says_what_needs_a_person_and_what_to_do(server: PageServer) -> None:
    page = server.get("/fleet/")
    assert "queue rl-eval is not served: 412 jobs, oldest 11 min 11 s; no live worker takes them" in page
    assert "host-07: 9.9 % of its attempts failed by our doing in the last hour, on other hosts 0.2 %" in page
    assert "3 dead letters" in page
    assert "sandfleet queues show rl-eval" in page


def test_the_foot_says_how_old_and_how_complete_the_data_is(server: PageServer, scene: Scene) -> None:
    assert "as of 12:43:14 UTC · history 1 s behind · 0 ended runs lost" in server.get("/fleet/").replace(
        "2026-11-29 ", ""
    )
    scene.history.state = HistoryStatus(
        at=NOW, number=10, head=510, lost=1234, lost_at=NOW - 7200, lag_seconds=700.0, fault="the disk is full"
    )
    time.sleep(1.1)  # an answer is kept for a second
    page = server.get("/fleet/")
    assert "history 700 s behind · 1,234 ended runs lost · the disk is full" in page
    assert "1,234 ended runs are missing in the history" in page
    assert "the newest 2 h ago" in page
    assert "the history is 11 min 40 s behind (500 ended runs)" in page


def test_runs_that_were_lost_long_ago_need_nobody(server: PageServer, scene: Scene) -> None:
    scene.history.state = HistoryStatus(at=NOW, number=10, head=10, lost=1234, lost_at=NOW - 25 * 3600)
    time.sleep(1.1)
    page = server.get("/fleet/")
    assert "1,234 ended runs lost" in page
    assert "missing in the history" not in page


def test_redis_down_is_a_page_that_says_so(server: PageServer, scene: Scene) -> None:
    def fail() -> None:
        raise FleetUnavailable("cannot reach Redis at 10.0.0.1:6379 (refused): start it")

    scene.state.fault = fail
    for path in ("", "hosts", "queues", "host?name=host-07", "images", "failures"):
        answer = server.ask(f"/fleet/{path}")
        assert (answer.status, "cannot reach Redis at 10.0.0.1:6379" in answer.text) == (503, True), path
    scene.state.fault = lambda: None
    assert server.ask("/fleet/").status == 200


def test_a_slow_question_is_a_sentence_and_not_an_error(server: PageServer, scene: Scene) -> None:
    class QueryTooSlow(FleetError, TimeoutError):
        pass

    def fail() -> None:
        raise QueryTooSlow("the history needs more than 2 s for this: narrow the time (since:, until:)")

    scene.history.fault = fail
    for path in ("", "jobs?q=text", "failures", "batch?name=sweep-12", "images", "queues"):
        answer = server.ask(f"/fleet/{path}")
        assert answer.status == 200, path
    assert "narrow the time" in server.get("/fleet/jobs?q=other")


def test_redis_that_hangs_blocks_no_other_page(
    server: PageServer, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sandfleet_web.pages.reading.ANSWER_SECONDS", 0.5)
    released = threading.Event()

    def hang() -> None:
        released.wait(20)

    scene.state.fault = hang
    try:
        with ThreadPoolExecutor(20) as pool:
            answers = list(pool.map(lambda _: server.ask("/fleet/hosts"), range(20)))
        assert {answer.status for answer in answers} == {503}
        assert "there was no answer within 0.5 s" in answers[0].text
        assert scene.state.reads == 1
        assert server.ask("/fleet/audit").status == 200
    finally:
        released.set()


def test_twenty_viewers_are_one_read_a_second(server: PageServer, scene: Scene) -> None:
    def view(_: int) -> None:
        until = time.monotonic() + 3
        while time.monotonic() < until:
            server.get("/fleet/")
            time.sleep(0.2)

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(view, range(20)))
    assert 3 <= scene.state.reads <= 5


def test_a_dead_worker_is_not_up_anywhere(server: PageServer, scene: Scene) -> None:
    summary = scene.state.summary
    late = tuple(
        replace(one, state="late", lease_seconds=0.0) if one.host == "host-03" else one for one in summary.workers
    )
    scene.state.summary = replace(summary, workers=late)
    assert "worker host-03:412:a1b2 is late" in server.get("/fleet/")
    assert "6 up" in server.get("/fleet/hosts")
    assert ">late<" in server.get("/fleet/host?name=host-03")


def test_no_worker_is_the_first_thing_to_do(server: PageServer, scene: Scene) -> None:
    scene.state.summary = replace(scene.state.summary, workers=())
    page = server.get("/fleet/")
    assert page.index("no worker lives: no job starts") < page.index("dead letters")


def test_a_slow_loop_is_told(server: PageServer, site: Site) -> None:
    for _ in range(200):
        site.loop_lag.add(1.7)
    assert "its loop is 1.7 s late" in server.get("/fleet/")
    assert "sandfleet-web serve" in server.get("/fleet/")


def test_a_waiting_job_says_why(server: PageServer) -> None:
    page = server.get(f"/fleet/job?id={WAITING_JOB}")
    assert "needs 1 GiB of memory, host-07 has 600 MiB free" in page
    assert "about 3,100 jobs come before it" in page
    assert "it expires in 23 h 49 min" in page


@pytest.mark.parametrize(
    ("queue", "expected"),
    [
        ("imports", "its queue imports is paused by ops: waits for the new data set"),
        ("rl-eval", "no live worker takes jobs of the queue rl-eval: see SANDFLEET_QUEUES of the hosts"),
        ("sandfleet", "all 56 slots of the hosts that take it are busy"),
    ],
)
def test_a_waiting_job_names_the_reason_of_its_queue(
    server: PageServer, scene: Scene, queue: str, expected: str
) -> None:
    summary = scene.state.summary
    busy = tuple(replace(one, busy=one.slots) for one in summary.workers)
    scene.state.summary = replace(summary, workers=busy)
    scene.channel.overview.jobs["w"] = replace(scene.channel.overview.jobs[WAITING_JOB], queue=queue, why="")
    if queue == "rl-eval":
        place = scene.channel.overview.find_queued
        scene.channel.overview.find_queued = lambda job: place(job)._replace(is_served=False)  # type: ignore[method-assign]
    assert expected in server.get("/fleet/job?id=w")


def test_hosts_that_are_all_cordoned_are_the_reason(server: PageServer, scene: Scene) -> None:
    cordoned: tuple[WorkerStatus, ...] = tuple(replace(one, state="cordoned") for one in scene.state.summary.workers)
    scene.state.summary = replace(scene.state.summary, workers=cordoned)
    page = server.get(f"/fleet/job?id={WAITING_JOB}")
    assert "all hosts that take its queue are cordoned or drained" in page


def test_all_attempts_stand_in_order_with_their_ends(server: PageServer) -> None:
    page = server.get(f"/fleet/job?id={JOB}")
    assert page.index("host-07") < page.index("host-03:412:a1b2")
    assert "WORKER_LOST" in page
    assert "attempt 2 of 3" in page


def test_an_ended_job_says_in_which_slot_it_ran(server: PageServer, scene: Scene) -> None:
    run = scene.history.runs[0]
    page = server.get(f"/fleet/job?id={run.job_id}")
    assert f"attempt 1 on {run.host}, slot 3," in page


def test_lists_are_paged_and_bounded(server: PageServer, scene: Scene) -> None:
    one = scene.state.summary.workers[0]
    many = tuple(replace(one, host=f"h-{number:04}", owner=f"h-{number:04}:1:x") for number in range(1000))
    scene.state.summary = replace(scene.state.summary, workers=many, cordons=())
    page = server.get("/fleet/hosts")
    assert page.count('<th scope="row">') == ROWS
    assert "1-50 of 1,000" in page
    assert "951-1,000 of 1,000" in server.get("/fleet/hosts?page=20")
    assert "951-1,000 of 1,000" in server.get("/fleet/hosts?page=99999")
    for wrong in ("0", "-1", "x", "9" * 400, "%C2%B2", "1e9"):
        assert server.ask(f"/fleet/hosts?page={wrong}").status == 200, wrong
    assert len(server.get("/fleet/")) < 200_000


def test_what_a_page_cuts_is_told_with_the_way_to_the_rest(server: PageServer, scene: Scene) -> None:
    (group, *_), images = scene.history.groups, scene.state.images["host-01"]
    scene.history.groups = [replace(group, fingerprint=f"kind-{at}") for at in range(101)]
    scene.state.images["host-01"] = [replace(images[0], name=f"image-{at}") for at in range(53)]
    scene.state.summary = replace(scene.state.summary, dead_letters=len(scene.channel.dead) + 9)

    failures, host = server.get("/fleet/failures"), server.get("/fleet/host?name=host-01")

    assert "more groups than these 100" in failures
    assert "9 more, older ones: <code>sandfleet dead list" in failures
    assert "3 more: <code>sandfleet hosts show host-01 -o json" in host


def test_a_job_is_found_by_its_id_and_a_search_that_is_none_says_why(server: PageServer) -> None:
    answer = server.ask(f"/fleet/jobs?q={JOB}")
    assert (answer.status, answer.headers["location"]) == (302, f"job?id={JOB}")
    assert "there is no code TIMEOUTS: did you mean TIMEOUT?" in server.get("/fleet/jobs?q=code:TIMEOUTS")
    for wrong in ("since:soon", "exit:x", "state:gone", "attempts:>x", "run:>"):
        assert 'class="notice warn"' in server.get(f"/fleet/jobs?q={wrong}"), wrong


def test_the_search_that_is_shown_stands_in_its_field(server: PageServer) -> None:
    assert 'type="search" value="batch:nightly-311 code:TIMEOUT"' in server.get(
        "/fleet/jobs?q=batch:nightly-311+code:TIMEOUT"
    )
    assert 'type="search" value=""' in server.get("/fleet/hosts?q=x")


def test_batches_that_have_expired_hide_none_behind_them(server: PageServer, scene: Scene) -> None:
    one = scene.channel.overview.entries[0]
    gone = [one._replace(name=f"gone-{at}", total=0) for at in range(30)]
    kept = [one._replace(name=f"kept-{at}") for at in range(30)]
    scene.channel.overview.entries = [*gone, *kept]

    page = server.get("/fleet/batches")
    assert ("kept-19<" in page, "kept-20<" in page) == (True, False)
    assert 'href="batches?page=2"' in page
    page = server.get("/fleet/batches?page=2")
    assert ("kept-29<" in page, "batches?page=3" in page) == (True, False)
    found = json.loads(server.get("/fleet/api/v1/batches?count=40"))
    assert (len(found["batches"]), found["cursor"]) == (10, "40")


def test_pages_of_what_is_not_there_say_so(server: PageServer) -> None:
    for path in ("job?id=nowhere", "job?id=%3Cx%3E", "host?name=x", "queue?name=x", "batch?name=x", "job", "batch"):
        answer = server.ask(f"/fleet/{path}")
        assert (answer.status, "<h1>" in answer.text) == (404, True), path
    assert server.ask(f"/fleet/jobs?q={'a' * 5000}").status == 400
