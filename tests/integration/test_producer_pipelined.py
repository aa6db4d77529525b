"""Pipelined calls: their answers, broken connections, forks and threads."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import SecretStr
from sandfleet import Fleet, QueueFull, SandboxSpec, Settings
from sandfleet.channel.pipelined import PipelinedCall
from sandfleet_config.queues import KEY_PREFIX
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    import redis

SPEC = SandboxSpec(image="x")
LIST = f"{KEY_PREFIX}sandfleet\x06\x166"


@pytest.fixture
def client(redis_server: Any) -> Iterator[redis.Redis]:
    found: redis.Redis = redis_server.client
    yield found
    for key in found.scan_iter(f"{KEY_PREFIX}*"):
        found.delete(key)
    found.delete("counter")


@pytest.fixture
def fleet(redis_server: Any, client: redis.Redis) -> Iterator[Fleet]:
    with Fleet(Settings(redis_url=SecretStr(redis_server.url))) as fleet:
        yield fleet


def cut_all(client: redis.Redis) -> None:
    client.client_kill_filter(_type="normal", skipme=True)


def test_an_answer_is_read_once_and_the_connection_is_returned(client: redis.Redis) -> None:
    for number in range(1, 4):
        with PipelinedCall(client, "INCR", "counter") as call:
            assert call.answer() == number
    assert len(client.connection_pool._in_use_connections) == 0


def test_an_unread_answer_is_not_read_by_another_call(client: redis.Redis) -> None:
    with PipelinedCall(client, "SET", "counter", 7):
        pass
    # The unread "OK" would be the next command's answer, had it stayed in a connection that is used
    # again.
    assert client.echo("mine") == b"mine"
    wait_until(lambda: client.get("counter") == b"7", 5, "the command has been done all the same")
    assert len(client.connection_pool._in_use_connections) == 0


def test_a_call_whose_connection_breaks_is_repeated(client: redis.Redis, fleet: Fleet) -> None:
    connection: Any = fleet._channel._connections.redis  # type: ignore[attr-defined]
    with PipelinedCall(connection, "GET", "counter") as call:
        cut_all(client)
        assert call.answer() is None
    assert len(connection.connection_pool._in_use_connections) == 0


def test_a_submit_whose_connections_break_queues_each_job_once(client: redis.Redis, fleet: Fleet) -> None:
    def produce() -> Iterator[SandboxSpec]:
        for index in range(3000):
            if index % 200 == 100:
                cut_all(client)
            yield SPEC

    jobs = fleet.submit_many(produce(), batch="b")
    assert client.llen(LIST) == len(set(jobs)) == 3000
    assert fleet.batch("b").job_ids == [job.id for job in jobs]


def test_a_redis_that_has_forgotten_the_script_gets_it_again(client: redis.Redis, fleet: Fleet) -> None:
    def produce() -> Iterator[SandboxSpec]:
        for index in range(1000):
            if index % 256 == 0:
                client.script_flush()
            yield SPEC

    assert len(fleet.submit_many(produce())) == client.llen(LIST) == 1000


def test_a_collect_whose_connections_break_yields_each_outcome_once(client: redis.Redis, fleet: Fleet) -> None:
    jobs = fleet.submit_many([SPEC] * 1000, batch="b")
    fleet.batch("b").cancel()
    seen: list[str] = []
    for outcome in fleet.as_completed(jobs, timeout=20):
        if len(seen) % 150 == 0:
            cut_all(client)
        seen.append(outcome.job_id)
    assert sorted(seen) == sorted(job.id for job in jobs)


def test_a_reader_that_stops_leaves_no_connection_behind(fleet: Fleet) -> None:
    jobs = fleet.submit_many([SPEC] * 1000, batch="b")
    fleet.batch("b").cancel()
    for _ in fleet.as_completed(jobs, timeout=20):
        break
    assert len(list(fleet.as_completed(jobs, timeout=20))) == 1000
    pool: Any = fleet._channel._connections.redis.connection_pool  # type: ignore[attr-defined]
    assert len(pool._in_use_connections) == 0


def test_a_forked_child_repeats_the_call_of_its_parent(client: redis.Redis) -> None:
    with PipelinedCall(client, "INCR", "counter") as call:
        child = os.fork()
        if child == 0:
            os._exit(0 if call.answer() in (1, 2) else 1)
        assert call.answer() in (1, 2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert client.get("counter") == b"2"


def test_threads_submit_and_collect_side_by_side(client: redis.Redis, fleet: Fleet) -> None:
    found: list[int] = []

    def use(name: str) -> None:
        jobs = fleet.submit_many([SPEC] * 600, batch=name, idempotent=True)
        fleet.batch(name).cancel()
        found.append(len({outcome.job_id for outcome in fleet.as_completed(jobs, timeout=20)}))

    threads = [threading.Thread(target=use, args=(f"b{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [600] * 4
    assert client.scard(f"{KEY_PREFIX}queues") == 0


def test_an_error_of_the_source_does_not_hide_a_full_queue(redis_server: Any, fleet: Fleet) -> None:
    def produce() -> Iterator[SandboxSpec]:
        yield from [SPEC] * 512
        raise ValueError("the source")

    full = Fleet(Settings(redis_url=SecretStr(redis_server.url), max_queued=300))
    with pytest.raises(QueueFull) as caught:
        full.submit_many(produce(), batch="b")
    assert list(caught.value.job_ids) == fleet.batch("b").job_ids
    assert len(caught.value.job_ids) == 256
    full.close()
