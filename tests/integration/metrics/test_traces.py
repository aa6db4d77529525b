"""One trace from submit to outcome, received over OTLP by a real receiver from a real worker."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry import trace
from otlp import Collector, facts
from pydantic import SecretStr, ValidationError
from sandfleet import Fleet, Settings
from sandfleet_config.queues import KEY_PREFIX, TRACE_HEADER
from sandfleet_config.traces_settings import TracesSettings
from scrape import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.proto.trace.v1.trace_pb2 import Span
    from stage import Stage, Stock

SECRET = "PLANTED-SECRET"
STEPS = ("queue", "claim", "image", "create", "run", "collect", "cleanup")
APPLICATION = trace.SpanContext(0xABC, 0xDEF, is_remote=False, trace_flags=trace.TraceFlags(1))


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as found:
        yield found


def open_fleet(url: str, collector: Collector | None) -> Fleet:
    traces = TracesSettings(endpoint=collector.url) if collector else TracesSettings()
    return Fleet(Settings(redis_url=SecretStr(url), traces=traces))


def name_spans(collector: Collector, job_id: str) -> dict[str, list[Span]]:
    """Return the spans of the traces that a job is in, by name, in the order of their start."""
    spans = [span for _, span in collector.read()]
    traces = {span.trace_id for span in spans if facts(span).get("sandfleet.job_id") == job_id}
    found: dict[str, list[Span]] = {}
    for span in sorted(spans, key=lambda span: span.start_time_unix_nano):
        if span.trace_id in traces:
            found.setdefault(span.name.removeprefix("sandfleet."), []).append(span)
    return found


def test_one_trace_from_submit_to_outcome(stage: Stage, collector: Collector) -> None:
    worker = stage.start(SANDFLEET_TRACES__ENDPOINT=collector.url)
    worker.wait_ready()
    spec: dict[str, Any] = {"image": "busybox", "command": ["sh", "-c", "sleep 0.2"], "env": [f"SECRET={SECRET}"]}
    with open_fleet(stage.redis_url, collector) as fleet, trace.use_span(trace.NonRecordingSpan(APPLICATION)):
        job = fleet.submit(spec | {"stdin": SECRET}, batch="nightly")
        outcome = job.outcome(timeout=30)
    assert outcome.code.value == "OK"
    assert worker.stop() == 0

    assert {service for service, _ in collector.read()} == {"sandfleet", "sandfleet-worker"}
    spans = name_spans(collector, job.id)
    assert {name: len(found) for name, found in spans.items()} == dict.fromkeys(("submit", "attempt", *STEPS), 1)
    [submit], [attempt] = spans["submit"], spans["attempt"]
    everything = [span for found in spans.values() for span in found]
    assert {int.from_bytes(span.trace_id) for span in everything} == {APPLICATION.trace_id}
    assert int.from_bytes(submit.parent_span_id) == APPLICATION.span_id
    assert attempt.parent_span_id == submit.span_id
    assert {span.parent_span_id for name in STEPS for span in spans[name]} == {attempt.span_id}

    told = facts(attempt)
    assert told["sandfleet.code"] == "OK"
    assert (told["sandfleet.queue"], told["sandfleet.batch"], told["sandfleet.attempt"]) == ("sandfleet", "nightly", 1)
    assert told["sandfleet.is_final"] is True
    steps = [spans[name][0] for name in STEPS]
    for earlier, later in itertools.pairwise(steps):
        assert earlier.start_time_unix_nano <= earlier.end_time_unix_nano <= later.start_time_unix_nano
    run = spans["run"][0]
    assert (run.end_time_unix_nano - run.start_time_unix_nano) / 1e9 == pytest.approx(outcome.timing.run, abs=1e-6)
    assert submit.start_time_unix_nano <= steps[0].end_time_unix_nano
    assert SECRET.encode() not in b"".join(collector.bodies)


def test_each_try_of_a_job_is_in_its_trace(stage: Stage, stock: Stock, collector: Collector) -> None:
    worker = stage.start(SANDFLEET_TRACES__ENDPOINT=collector.url)
    worker.wait_ready()
    with open_fleet(stage.redis_url, collector) as fleet:
        job = fleet.submit({"image": "busybox", "command": ["sleep", "3"], "timeout": 20})
        stage.kill_sentries()
        outcome = job.outcome(timeout=60)
    assert [attempt.code and attempt.code.value for attempt in outcome.attempts][-1] == "OK"
    assert len(outcome.attempts) == 2
    forged = {TRACE_HEADER: "00-zz-1-01", "sandfleet-submitted": 0}
    alone = stock.submit("true", headers=forged)
    stock.outcome(alone)
    worker.stop()

    spans = name_spans(collector, job.id)
    first, second = map(facts, spans["attempt"])
    assert (first["sandfleet.category"], first["sandfleet.is_final"]) == ("host", False)
    assert (second["sandfleet.code"], second["sandfleet.attempt"], second["sandfleet.is_final"]) == ("OK", 2, True)
    assert {span.trace_id for found in spans.values() for span in found} == {spans["submit"][0].trace_id}
    assert len(spans["queue"]) == 2
    of_stock = name_spans(collector, alone)
    assert "submit" not in of_stock
    assert of_stock["attempt"][0].parent_span_id == b"", "a forged context is no context"


def test_without_traces_the_message_is_as_it_was(url: str, client: Any, collector: Collector) -> None:
    """Neither fingerprint nor contract know of traces, and the message has no header more."""
    spec = {"image": "busybox", "command": ["true"], "idempotency_key": "k"}
    with open_fleet(url, None) as off, open_fleet(url, collector) as on:
        plain, traced = off.submit(spec | {"idempotency_key": "a"}), on.submit(spec | {"idempotency_key": "b"})
        again = on.submit(spec | {"idempotency_key": "a"})
    assert again.id == plain.id, "the same key and spec are the same job"
    lists = [key for key in client.keys(f"{KEY_PREFIX}sandfleet*") if client.type(key) == b"list"]
    messages = [json.loads(raw) for key in lists for raw in client.lrange(key, 0, -1)]
    found = {message["headers"]["id"]: message["headers"] for message in messages}
    assert TRACE_HEADER not in found[plain.id]
    assert len(found[traced.id][TRACE_HEADER]) == 55
    assert found[plain.id].keys() == found[traced.id].keys() - {TRACE_HEADER}


def test_nothing_of_opentelemetry_is_loaded_without_traces() -> None:
    code = (
        "import sys; from sandfleet import Fleet; import sandfleet.submit.submitting, sandfleet.traces\n"
        "import sandfleet_worker.tasks, sandfleet_worker.traces, sandfleet_worker.host\n"
        # redis-py looks for the API by itself; the rest is what costs time and memory.
        "sys.exit(any(name.startswith(('opentelemetry.sdk.trace', 'opentelemetry.exporter')) for name in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_commands_do_not_load_the_metrics_of_redis_py() -> None:
    code = (
        "import sys; from sandfleet.cli import main\n"
        "sys.argv[1:] = ['show', 'x']; code = main()\n"
        "assert 'redis' in sys.modules and code == 125, code\n"
        "sys.exit(any(name.startswith('opentelemetry.sdk') for name in sys.modules if sys.modules[name]))"
    )
    env = {**os.environ, "SANDFLEET_REDIS_URL": "unix:///no/such/socket"}
    subprocess.run([sys.executable, "-c", code], check=True, env=env, timeout=60)


def test_a_collector_that_is_down_delays_nobody_long(url: str, client: Any) -> None:
    began = time.monotonic()
    traces = TracesSettings(endpoint=f"http://127.0.0.1:{free_port()}")
    with Fleet(Settings(redis_url=SecretStr(url), traces=traces)) as fleet:
        job = fleet.submit({"image": "busybox", "command": ["true"]})
    assert time.monotonic() - began < 8
    assert client.exists(f"{KEY_PREFIX}job:{job.id}")


@pytest.mark.parametrize("endpoint", ["127.0.0.1:4318", "ftp://x", "http://", "http://me:pw@host:4318"])
def test_a_wrong_endpoint_is_refused(endpoint: str) -> None:
    with pytest.raises(ValidationError, match="must"):
        TracesSettings(endpoint=endpoint)
