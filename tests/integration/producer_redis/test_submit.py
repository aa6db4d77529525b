"""Records and messages that a producer leaves in Redis."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

import pytest
from bare_redis import LIST, SPEC, hget, read_message
from celery import Celery
from celery.contrib.testing.worker import start_worker
from sandfleet import (
    Fleet,
    Payload,
    SandboxSpec,
)
from sandfleet.errors import JobExists
from sandfleet_config.celery import shared_options
from sandfleet_config.queues import TASK_NAME, job_key, result_key
from sandfleet_config.wire import decode_job
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    import redis


def test_a_submit_is_a_record_and_a_stock_celery_message(fleet: Fleet, client: redis.Redis) -> None:
    job = fleet.submit(SPEC, batch="b")
    message = read_message(client)
    headers = message["headers"]
    assert (headers["task"], headers["id"]) == ("sandfleet.run", job.id)
    assert headers["timelimit"] == [1.75, 1.5]
    assert headers["argsrepr"] == "n: x sh -c true"
    assert not headers["ignore_result"]
    assert headers["eta"] is headers["expires"] is None
    (text,), kwargs, embed = json.loads(base64.b64decode(message["body"]))
    assert (decode_job(text).spec, decode_job(text).batch, kwargs) == (SPEC, "b", {})
    assert not any(embed.values())
    assert client.ttl(job_key(job.id)) == -1, "a job's keys live until it has ended"
    assert json.loads(hget(client, job.id, "record"))["batch"] == "b"
    assert hget(client, job.id, "state") == b"queued"


def test_no_env_and_no_stdin_is_anywhere_but_in_the_spec_itself(fleet: Fleet, client: redis.Redis) -> None:
    job = fleet.submit(SPEC)
    message = read_message(client)
    message["body"] = ""
    record = hget(client, job.id, "record").decode()
    seen = f"{message} {record} {client.hgetall(job_key(job.id))!r} {job!r} {fleet!r} {fleet.record(job.id)!r}"
    assert "s3cret" not in seen


def test_the_message_is_what_celery_would_have_sent(fleet: Fleet, client: redis.Redis) -> None:
    """Field for field, so that stock consumers and Flower read it."""
    with Celery("stock", set_as_current=False) as app:
        app.conf.update(shared_options(fleet.settings) | {"result_backend": "disabled://"})
        stock_limits: Any = {"soft_time_limit": 1.5, "time_limit": 1.75}
        app.send_task("sandfleet.run", ["x"], argsrepr="n: x", kwargsrepr="", priority=6, **stock_limits)
    stock = read_message(client)
    fleet.submit(SPEC)
    ours = read_message(client)
    assert ours.keys() == stock.keys()
    assert ours["headers"].keys() - stock["headers"].keys() == {"sandfleet-submitted", "sandfleet-recorded"}
    assert stock["headers"].keys() <= ours["headers"].keys()
    # `send_task` passes every option on as a property; Celery reads these two from the headers.
    assert stock["properties"].keys() - ours["properties"].keys() == {"argsrepr", "kwargsrepr"}
    same_headers = stock["headers"].keys() - {"id", "root_id", "argsrepr"}
    assert {name: ours["headers"][name] for name in same_headers} == {
        name: stock["headers"][name] for name in same_headers
    }
    for name in ("delivery_mode", "delivery_info", "priority", "body_encoding"):
        assert ours["properties"][name] == stock["properties"][name]
    assert json.loads(base64.b64decode(ours["body"]))[1:] == json.loads(base64.b64decode(stock["body"]))[1:]


@pytest.mark.parametrize(("priority", "key"), [(0, ""), (2, ""), (3, "\x06\x163"), (6, "\x06\x166"), (9, "\x06\x169")])
def test_priorities_go_to_kombus_lists(fleet: Fleet, client: redis.Redis, priority: int, key: str) -> None:
    job = fleet.submit(SPEC.model_copy(update={"priority": priority}), queue="q1")
    message = read_message(client, f"sandfleet:q1{key}")
    assert message["headers"]["id"] == job.id
    assert message["properties"]["priority"] == priority
    assert message["properties"]["delivery_info"]["routing_key"] == "q1"
    assert client.smembers("sandfleet:queues") == {b"q1"}


def test_a_stock_worker_takes_the_message(fleet: Fleet, client: redis.Redis) -> None:
    job = fleet.submit(SPEC)
    seen: list[tuple[str, str]] = []
    app = Celery("stock", set_as_current=False)
    app.conf.update(shared_options(fleet.settings))

    @app.task(name=TASK_NAME, bind=True)
    def run(self: Any, text: str) -> None:
        seen.append((self.request.id, decode_job(text).spec.image))

    with start_worker(app, pool="solo", perform_ping_check=False, shutdown_timeout=20):
        wait_until(lambda: seen, 20, "a stock worker runs the job")
    app.close()
    assert seen == [(job.id, "x")]
    client.delete(result_key(job.id))


def test_a_producer_that_lost_the_answer_submits_once(fleet: Fleet, client: redis.Redis) -> None:
    """As redis-py does after a connection that broke: the same call again."""
    from sandfleet.submit.check import CheckedJob
    from sandfleet.submit.encode import JobEncoder

    encoder = JobEncoder("b", 10_000)
    jobs = encoder.name([encoder.encode(CheckedJob(SPEC, "")) for _ in range(3)])
    first = fleet._channel.publish(jobs, "sandfleet", 3)
    again = fleet._channel.publish(jobs, "sandfleet", 3)
    assert [submitted.job_id for submitted in first] == [submitted.job_id for submitted in again]
    assert {submitted.state.value for submitted in again} == {"same"}
    assert client.llen(LIST) == fleet.batch("b").counts.total == 3


def test_a_job_is_known_by_its_outcome_alone(fleet: Fleet, client: redis.Redis) -> None:
    """Of a stock producer's job nothing else may be left."""
    client.set(result_key("taken"), "{}", ex=60)
    with pytest.raises(JobExists):
        fleet.submit(SPEC, job_id="taken")
    assert not client.exists(LIST, job_key("taken"))
    client.delete(result_key("taken"))
    assert fleet.submit(SPEC, job_id="taken").id == "taken"


def test_an_iterator_is_queued_as_it_comes(fleet: Fleet, client: redis.Redis) -> None:
    seen: list[int] = []

    def produce() -> Iterator[SandboxSpec]:
        for _ in range(1000):
            seen.append(client.llen(LIST))
            yield SPEC

    assert len(fleet.submit_many(produce())) == 1000
    # A slow machine makes smaller chunks, so that more of them are queued before the last is made.
    assert 512 <= max(seen) < 1000, "the last chunk is made while the one before it is on its way"


def test_large_specs_go_in_smaller_chunks(fleet: Fleet) -> None:
    spec = SPEC.model_copy(update={"stdin": Payload(data="x" * 200_000)})
    chunks = [len(jobs) for jobs in fleet.submit_chunks([spec] * 50)]
    assert sum(chunks) == 50
    assert max(chunks) < 30
