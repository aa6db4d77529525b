"""Waits for ends: by notices and streams, without polling Redis; a lost connection loses none."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import SecretStr
from sandfleet import ErrorCode, Fleet, FleetRunner, FleetUnavailable, Outcome, ResultTimeout, SandboxSpec, Settings
from sandfleet_config.errors import Cancelled
from sandfleet_config.queues import DEFAULT_QUEUE
from sandfleet_worker.delivery.ledger import Ledger
from waiting import wait_until

SPEC = SandboxSpec(image="x", command=["true"])
QUIET_SECONDS = 4.0
Wait = Callable[[], object]


@pytest.fixture
def no_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ends are heard by a notice."""
    monkeypatch.setattr("sandfleet.collect.polling.FIRST_CHECK_SECONDS", 100.0)
    monkeypatch.setattr("sandfleet.collect.polling.CHECK_SECONDS", 100.0)


def end_next(ledger: Ledger) -> str:
    claim, _ = ledger.claim(f"claim-{time.monotonic_ns()}", [DEFAULT_QUEUE])
    assert claim is not None
    assert ledger.finish(claim, Outcome.of(ErrorCode.OK, claim.job_id, exit_code=0))
    return claim.job_id


def count_calls(client: Any) -> int:
    """How many commands Redis has had, but for ours; those of scripts count too."""
    stats = client.info("commandstats")
    return sum(fields["calls"] for name, fields in stats.items() if name != "cmdstat_info")


def in_threads(*waits: Wait) -> list[threading.Thread]:
    threads = [threading.Thread(target=wait) for wait in waits]
    for thread in threads:
        thread.start()
    return threads


def is_listening(client: Any, *, subscribed: int = 0, blocked: int = 0) -> bool:
    """Whether so many connections are subscribed, and so many blocked in a read."""
    clients = client.client_list()
    return (
        sum(int(found["sub"]) > 0 for found in clients) >= subscribed
        and sum("b" in found["flags"] for found in clients) >= blocked
    )


def test_redis_is_asked_for_nothing_while_nothing_ends(client: Any, fleet: Fleet, ledger: Ledger) -> None:
    single = fleet.submit(SPEC)
    loose = fleet.submit_many([SPEC] * 300)
    many = fleet.submit_many([SPEC] * 300, batch="b")
    found: list[Outcome] = []

    async def collect() -> None:
        found.extend([outcome async for outcome in fleet.batch("b").as_completed(timeout=60)])

    threads = in_threads(
        lambda: found.append(single.outcome(timeout=60)),
        lambda: found.append(FleetRunner(fleet).run(SPEC, cancel=threading.Event()).outcome),
        lambda: found.extend(fleet.as_completed(loose, timeout=60)),
        lambda: found.extend(fleet.as_completed(many, timeout=60)),
        lambda: asyncio.run(collect()),
    )
    wait_until(lambda: is_listening(client, subscribed=1, blocked=2), 20, "all of them listen")
    time.sleep(2.0)  # the first look of each is over
    before = count_calls(client)
    time.sleep(QUIET_SECONDS)
    asked = count_calls(client) - before
    for _ in range(602):
        end_next(ledger)
    for thread in threads:
        thread.join(60)
    assert len(found) == 1 + 1 + 300 + 300 + 300
    assert asked <= 10, "one health look of each at most; polling asked some hundred times"


def count_scripts(client: Any) -> int:
    return int(client.info("commandstats").get("cmdstat_evalsha", {}).get("calls", 0))


@pytest.mark.usefixtures("no_looks")
def test_the_notice_of_an_end_brings_its_entry_and_no_script_reads_it_again(
    client: Any, fleet: Fleet, ledger: Ledger
) -> None:
    many = fleet.submit_many([SPEC] * 300, batch="b")
    found: list[list[Outcome]] = [[], []]
    threads = in_threads(
        lambda: found[0].extend(fleet.as_completed(many, timeout=60)),
        lambda: found[1].extend(fleet.batch("b").as_completed(timeout=60)),
    )
    wait_until(lambda: is_listening(client, blocked=2), 20, "both listen")
    end_next(ledger)
    wait_until(lambda: all(found), 10, "the counts are new")
    before, began = count_scripts(client), time.monotonic()
    for ended in range(2, 30):
        end_next(ledger)
        wait_until(lambda: all(len(outcomes) == ended for outcomes in found), 10, "both have it")  # noqa: B023
    calls = count_scripts(client) - before - 2 * 28  # a claim and an end each
    took = time.monotonic() - began
    for _ in range(271):
        end_next(ledger)
    for thread in threads:
        thread.join(60)
    assert [len(outcomes) for outcomes in found] == [300, 300]
    assert calls <= 2 * (took + 2), "the counts of each wait are read once a second at most"


@pytest.mark.usefixtures("no_looks")
def test_an_end_is_heard_at_once(client: Any, fleet: Fleet, ledger: Ledger) -> None:
    told: dict[str, float] = {}

    def note(name: str, wait: Wait) -> Wait:
        def run() -> None:
            wait()
            told[name] = time.monotonic()

        return run

    (batched,) = fleet.submit_many([SPEC], batch="b")
    threads = in_threads(
        note("job", lambda: batched.outcome(timeout=60)),
        note("async", lambda: asyncio.run(fleet.job(batched.id).outcome_async(timeout=60))),
        note("cancel", lambda: batched.wait(60, threading.Event())),
        note("batch", lambda: list(fleet.batch("b").as_completed(timeout=60))),
    )
    wait_until(lambda: is_listening(client, subscribed=1, blocked=1), 20, "all of them listen")
    time.sleep(1.0)
    began = time.monotonic()
    end_next(ledger)
    for thread in threads:
        thread.join(30)
    assert set(told) == {"job", "async", "cancel", "batch"}
    assert max(told.values()) - began < 2.0, "some milliseconds on a machine that is not busy"


@pytest.mark.usefixtures("no_looks")
def test_connections_that_break_lose_no_end(client: Any, fleet: Fleet, ledger: Ledger) -> None:
    jobs = fleet.submit_many([SPEC] * 5, batch="b")
    found: list[list[str]] = [[], []]
    threads = in_threads(
        lambda: found[0].extend(outcome.job_id for outcome in fleet.as_completed(jobs, timeout=60)),
        lambda: found[1].extend(outcome.job_id for outcome in fleet.batch("b").as_completed(timeout=60)),
    )
    for number in range(5):
        wait_until(lambda: is_listening(client, subscribed=1, blocked=1), 20, "both listen")
        for kind in ("normal", "pubsub"):
            client.client_kill_filter(_type=kind, skipme=True)
        end_next(ledger)  # while nobody listens, or just before
        wait_until(lambda count=number + 1: [len(ids) for ids in found] == [count] * 2, 20, "both have heard of it")  # type: ignore[misc]
    for thread in threads:
        thread.join(30)
    assert [sorted(ids) for ids in found] == [sorted(job.id for job in jobs)] * 2


def test_a_wait_in_an_event_loop_is_cancelled_at_once_and_many_share_a_connection(
    client: Any, fleet: Fleet, ledger: Ledger
) -> None:
    jobs = fleet.submit_many([SPEC] * 150)

    async def take_one() -> Outcome:
        return await anext(aiter(fleet.as_completed(jobs)))

    async def wait_for_all() -> float:
        waits = [asyncio.create_task(job.outcome_async(timeout=60)) for job in jobs]
        while not is_listening(client, subscribed=1):  # noqa: ASYNC110  Redis sets no event
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.5)
        assert len(client.client_list()) < 30
        waits[0].cancel()
        batch: asyncio.Task[Any] = asyncio.create_task(take_one())
        await asyncio.sleep(0.5)
        began = time.monotonic()
        batch.cancel()
        results = await asyncio.gather(waits[0], batch, return_exceptions=True)
        assert [type(result) for result in results] == [asyncio.CancelledError] * 2
        for _ in jobs:
            await asyncio.to_thread(end_next, ledger)
        assert len(await asyncio.gather(*waits[1:])) == 149
        return time.monotonic() - began

    assert asyncio.run(wait_for_all()) < 30


def test_a_cancelled_run_ends_its_wait_at_once(fleet: Fleet) -> None:
    cancel = threading.Event()
    timer = threading.Timer(0.5, cancel.set)
    timer.start()
    began = time.monotonic()
    with pytest.raises(Cancelled):
        FleetRunner(fleet).run(SPEC, cancel=cancel)
    assert time.monotonic() - began < 5
    timer.join()


def test_a_forked_child_waits_on_its_own(client: Any, fleet: Fleet, ledger: Ledger) -> None:
    first, second = fleet.submit_many([SPEC] * 2)
    with pytest.raises(ResultTimeout):
        first.outcome(timeout=0.2)  # the parent has a thread that listens
    stream = iter(fleet.as_completed([first, second], timeout=30))
    end_next(ledger)
    next(stream)
    child = os.fork()
    if child == 0:
        try:
            ids = {outcome.job_id for outcome in stream} | {second.outcome(timeout=30).job_id}
            os._exit(0 if ids == {second.id} else 1)
        finally:
            os._exit(2)
    time.sleep(1.0)
    end_next(ledger)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert [outcome.job_id for outcome in stream] == [second.id]


def test_a_user_who_may_not_subscribe_is_told(client: Any, url: str) -> None:
    client.acl_setuser("deaf", enabled=True, passwords=["+pw"], keys=["*"], commands=["+@all"], channels=[], reset=True)
    try:
        with Fleet(Settings(redis_url=SecretStr(url.replace("unix://", "unix://deaf:pw@")))) as fleet:
            job = fleet.submit(SPEC)
            with pytest.raises(FleetUnavailable, match=r"refuses.*channel"):
                job.outcome(timeout=30)
            with pytest.raises(ResultTimeout):
                job.outcome(timeout=0)
    finally:
        client.acl_deluser("deaf")


def test_a_redis_that_goes_away_is_told_while_nothing_ends(tmp_path: Any) -> None:
    import subprocess

    socket = tmp_path / "redis.sock"
    options = ["--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", str(tmp_path)]
    with subprocess.Popen(["redis-server", *options], stdout=subprocess.DEVNULL) as server:
        wait_until(socket.exists, 20, "redis-server has its socket")
        with Fleet(Settings(redis_url=SecretStr(f"unix://{socket}?db=0"))) as fleet:
            job = fleet.submit(SPEC)
            timer = threading.Timer(0.7, server.kill)
            timer.start()
            began = time.monotonic()
            with pytest.raises(FleetUnavailable):
                job.outcome(timeout=60)
            assert time.monotonic() - began < 30
            timer.join()
