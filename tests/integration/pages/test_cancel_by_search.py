"""A cancel by a search reaches all that match: what workers have, and whole queues and batches."""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING

import pytest
from page_server import PageServer, new_users, running_pages
from past import Past
from sandfleet import SandboxSpec
from sandfleet.cli import main
from sandfleet_config.queues import DEFAULT_QUEUE
from sandfleet_web.pages.opening import open_site

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sandfleet import Fleet
    from sandfleet_worker.delivery.ledger import Ledger

QUEUES = {DEFAULT_QUEUE: 50, "rl": 250}
HELD = 20
S7 = SandboxSpec(image="python", command=["true"], labels={"suite": "s7"})


@pytest.fixture
def past(url: str, fleet: Fleet, ledger: Ledger, tmp_path: Path) -> Iterator[Past]:
    """Have 300 open jobs of two queues, 20 of them with a worker, and one of another label."""
    past = Past(url, fleet, ledger, tmp_path)
    for queue, count in QUEUES.items():
        fleet.submit_many([S7] * count, queue=queue)
    fleet.submit(SandboxSpec(image="python", command=["true"], labels={"suite": "s8"}))
    held: list[str] = []
    for number in range(HELD):
        claim, _ = ledger.claim(f"held-{number}", ["rl"])
        assert claim is not None
        held.append(claim.job_id)
    running = [[job_id, slot, time.time()] for slot, job_id in enumerate(held)]
    ledger.beat(60, [], json.dumps({"state": "up"}), json.dumps(running))
    yield past
    past.close()


@pytest.fixture
def pages(past: Past) -> Iterator[PageServer]:
    with running_pages(open_site(past.settings(), new_users())) as server:
        yield server


def test_the_page_counts_and_cancels_all_that_match(pages: PageServer, past: Past) -> None:
    listed = pages.get("/fleet/jobs?q=label.suite%3Ds7")
    assert "More match than the 200 shown" in listed
    assert "queue rl: 200 of its 230 jobs are looked at" in pages.get("/fleet/jobs?q=queue:rl+state:queued")
    asked = pages.get("/fleet/act?verb=cancel&q=label.suite%3Ds7")
    assert "300 jobs match now" in asked
    assert "wait for another attempt" in asked
    seen = re.search(r'name="seen" value="([0-9.]+)"', asked)
    assert seen is not None
    form = {"verb": "cancel", "q": "label.suite=s7", "reason": "x", "seen": seen[1], "shown": "300", "typed": "300"}
    assert "300 done, 0 skipped, 0 gone" in pages.ask("/fleet/act", form=form).text
    assert [len(past.fleet.state.queued_ids(queue, 0, 1000)) for queue in QUEUES] == [1, 0]


def test_the_page_cancels_a_queues_running_jobs_too(pages: PageServer) -> None:
    assert "250 jobs match now" in pages.get("/fleet/act?verb=cancel&q=queue:rl")
    assert "20 jobs match now" in pages.get("/fleet/act?verb=cancel&q=queue:rl+host:host")


def test_the_command_line_counts_and_cancels_all_that_match(past: Past, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["jobs", "cancel", "-l", "suite=s7", "--yes"]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines()[0] == "300 done, 0 skipped, 0 gone"
    assert "20  run, and are told to end" in printed.out
    assert "100,000 that wait in queues" in printed.err
    assert [len(past.fleet.state.queued_ids(queue, 0, 1000)) for queue in QUEUES] == [1, 0]


def test_a_batch_is_cancelled_by_any_word(past: Past, capsys: pytest.CaptureFixture[str]) -> None:
    past.fleet.submit_many([S7] * 7, batch="mixed", queue="rl")
    past.fleet.submit_many([S7] * 3, batch="mixed")
    assert main(["jobs", "cancel", "--batch", "mixed", "--queue", "rl", "--yes"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "7 done, 0 skipped, 0 gone"


def test_a_list_says_which_queue_it_did_not_read_whole(past: Past, capsys: pytest.CaptureFixture[str]) -> None:
    assert sorted(past.fleet.state.whole_queue("rl", 1000)) == sorted(past.fleet.state.queued_ids("rl", 0, 1000))
    main(["jobs", "--queue", "rl", "--state", "queued", "-n", "0", "-o", "ids"])
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 200
    assert "queue rl: 200 of its 230 jobs are looked at" in printed.err
