"""A forged message never runs and never stops the worker, and its outcome says why."""

from __future__ import annotations

import base64
import json
import pickle
import time
import uuid
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from rows import each_row
from sandfleet_config.queues import KEY_PREFIX
from waiting import wait_until

if TYPE_CHECKING:
    from stage import Stage, Stock

CANARY = "canary-of-the-forged-body"
GOOD = {"image": "busybox", "command": ["true"], "env": [f"SECRET={CANARY}"]}
EMPTY: dict[str, Any] = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


def body(spec: dict[str, Any] | None = None, contract: object = 1, **embed: Any) -> list[Any]:
    return [[json.dumps({"contract": contract, "spec": GOOD | (spec or {})})], {}, EMPTY | embed]


SPECS: dict[str, tuple[dict[str, Any], str]] = {
    "runsc_path": ({"runsc_path": "/bin/sh"}, "SECURITY_VIOLATION"),
    "root_dir": ({"root_dir": "/etc"}, "SECURITY_VIOLATION"),
    "platform": ({"platform": "ptrace"}, "SECURITY_VIOLATION"),
    "host network": ({"security": {"network_mode": "host"}}, "SECURITY_VIOLATION"),
    "sandbox network": ({"security": {"network_mode": "sandbox"}}, "SECURITY_VIOLATION"),
    "privileged": ({"security": {"privileged": True}}, "SECURITY_VIOLATION"),
    "privileged and faulty": ({"security": {"privileged": True}, "timeout": -1}, "SECURITY_VIOLATION"),
    "negative memory": ({"resources": {"memory_bytes": -1}}, "SPEC_INVALID"),
    "negative timeout": ({"timeout": -1}, "SPEC_INVALID"),
    "above the ceiling": ({"resources": {"memory_bytes": 1 << 50}}, "SPEC_INVALID"),
    "unknown field": ({"backdoor": 1}, "SPEC_INVALID"),
    "less memory than a sandbox": ({"resources": {"memory_bytes": 4096}}, "SPEC_INVALID"),
    "less CPU than a sandbox": ({"resources": {"cpu_quota": 1}}, "SPEC_INVALID"),
    "labels that kombu would decode": ({"labels": {"__type__": "x", "__value__": "y"}}, "SPEC_INVALID"),
    "command of a wrong type": ({"command": {"__type__": "bytes", "__value__": "x"}}, "SPEC_INVALID"),
}


@each_row("case", SPECS)
def test_a_forged_spec_is_refused(module_stage: Stage, stock: Stock, case: str) -> None:
    spec, code = SPECS[case]
    expect_refusal(module_stage, stock, stock.push(body(spec)), code)


def test_the_spec_that_took_7_gb_of_a_worker_leaves_its_memory_flat(module_stage: Stage, stock: Stock) -> None:
    worker = psutil.Process(module_stage.workers[0].process.pid)
    before = worker.memory_info().rss
    for spec in (
        {"command": ["x" * 100_000], "env": ["PATH=" + "a:" * 70_000]},
        {"command": ["x"], "env": ["PATH=" + ":" * 131_073]},
        {"command": ["x" * 60_000], "env": ["PATH=" + "a:" * 30_000]},
    ):
        expect_refusal(module_stage, stock, stock.push(body(spec)), "SPEC_INVALID")
    assert worker.memory_info().rss - before < 64 << 20


BODIES: dict[str, object] = {
    "another contract": body(contract=99),
    "no contract": body(contract=None),
    "not JSON": f"[[{CANARY}",
    "deep": "[" * 100_000,
    "empty": "",
    "null": "null",
    "an object": {"args": [], "kwargs": {}},
    "no args": [[], {}, EMPTY],
    "two args": [["a", "b"], {}, EMPTY],
    "kwargs": [body()[0], {"host": CANARY}, EMPTY],
    "args is an object": [{"a": 1}, {}, EMPTY],
    "the spec as an object": [[{"contract": 1, "spec": GOOD}], {}, EMPTY],
    "a kombu type": [[{"__type__": "bytes", "__value__": CANARY}], {}, EMPTY],
    "an unknown kombu type": [[{"__type__": CANARY, "__value__": {}}], {}, EMPTY],
    "a kombu type as embed": [body()[0], {}, {"__type__": "x", "__value__": "y"}],
    "text that is not JSON": [[CANARY], {}, EMPTY],
    "a lone surrogate": '[["\\ud800"], {}, {}]',
    "a huge number": "[[" + "9" * 10_000 + "], {}, {}]",
    "callbacks": body(callbacks=[{"task": "sandfleet.run", "args": body()[0]}]),
    "errbacks": body(errbacks=[{"task": "sandfleet.run", "args": body()[0]}]),
    "chain": body(chain=[{"task": "sandfleet.run", "args": body()[0]}]),
    "chord": body(chord={"task": "celery.chord_unlock", "args": []}),
}


@each_row("case", BODIES)
def test_a_forged_body_is_refused(module_stage: Stage, stock: Stock, case: str) -> None:
    expect_refusal(module_stage, stock, stock.push(BODIES[case]), "SPEC_INVALID")


HEADERS: dict[str, dict[str, Any]] = {
    "chord_unlock": {"task": "celery.chord_unlock"},
    "backend_cleanup": {"task": "celery.backend_cleanup"},
    "map": {"task": "celery.map"},
    "accumulate": {"task": "celery.accumulate"},
    "unknown task": {"task": "os.system"},
    "task is an object": {"task": {"x": CANARY}},
    "task is no name": {"task": f"rm -rf {CANARY}"},
    "task is huge": {"task": CANARY * 10_000},
    "no task": {"task": None},
    "eta": {"eta": "2030-01-01T00:00:00+00:00"},
    "absurd eta": {"eta": {"x": 1}},
    "retries": {"retries": 3},
    "absurd retries": {"retries": {"x": CANARY}},
    "absurd expires": {"expires": CANARY},
    "timelimit of text": {"timelimit": ["1", "1"]},
    "negative timelimit": {"timelimit": [-1, -1]},
    "timelimit NaN": {"timelimit": [float("nan"), 1]},
    "timelimit of one": {"timelimit": [1]},
    "timelimit text": {"timelimit": CANARY},
    "chord in the headers": {"chord": {"task": "x"}},
    "gzip that is none": {"compression": "application/x-gzip"},
    "unknown compression": {"compression": CANARY},
}


@each_row("case", HEADERS)
def test_forged_headers_are_refused(module_stage: Stage, stock: Stock, case: str) -> None:
    expect_refusal(module_stage, stock, stock.push(body(), HEADERS[case]), "SPEC_INVALID")


ENVELOPES: dict[str, dict[str, Any]] = {
    "pickle": {
        "body": base64.b64encode(pickle.dumps(body())).decode(),
        "content-type": "application/x-python-serialize",
        "content-encoding": "binary",
    },
    "yaml": {"content-type": "application/x-yaml"},
    "no content type": {"content-type": None},
    "utf-16": {"content-encoding": "utf-16"},
    "unknown encoding": {"content-encoding": "klingon"},
    "compressed": {"body": base64.b64encode(zlib.compress(b"[]")).decode()},
}


@each_row("case", ENVELOPES)
def test_a_forged_envelope_is_refused(module_stage: Stage, stock: Stock, case: str) -> None:
    envelope = {"body": body()} | ENVELOPES[case]

    expect_refusal(module_stage, stock, stock.push(envelope.pop("body"), **envelope), "SPEC_INVALID")


def test_a_spec_over_the_limit_is_refused(module_stage: Stage, stock: Stock) -> None:
    expect_refusal(module_stage, stock, stock.push(body({"stdin": "x" * 300_000})), "SPEC_TOO_LARGE")
    expect_refusal(module_stage, stock, stock.push("[" + " " * 10_000_000 + "]"), "SPEC_TOO_LARGE")


@each_row(
    "job_id",
    [None, 7, {"x": 1}, "", "with space", "../x", "x\n", "*", "x" * 1_000_000],
)
def test_a_message_without_a_usable_id_is_set_aside(module_stage: Stage, stock: Stock, job_id: object) -> None:
    before = module_stage.workers[0].log.count("action=message_set_aside")
    stock.push(body(), {"id": job_id})

    wait_until(
        lambda: module_stage.workers[0].log.count("action=message_set_aside") > before, 10, "the message is set aside"
    )
    assert stock.outcome(stock.submit("true"))["code"] == "OK"
    assert CANARY not in module_stage.workers[0].log


def test_a_message_of_the_first_protocol_is_set_aside(module_stage: Stage, stock: Stock) -> None:
    """Its id is in the body, which is not read when a job is claimed."""
    before = module_stage.workers[0].log.count("action=message_set_aside")
    stock.push(
        {"task": "sandfleet.run", "id": "first-protocol", "args": body()[0], "kwargs": {}},
        headers={"id": None, "task": None},
    )

    wait_until(
        lambda: module_stage.workers[0].log.count("action=message_set_aside") > before, 10, "the message is set aside"
    )


def test_an_expired_job_ends_as_expired(module_stage: Stage, stock: Stock) -> None:
    job_id = stock.push(body(), {"expires": "2020-01-01T00:00:00"})

    assert stock.outcome(job_id)["code"] == "EXPIRED"


def test_a_job_with_a_future_expiry_and_the_limits_of_the_header_runs(module_stage: Stage, stock: Stock) -> None:
    job_id = stock.submit("sleep", "20", expires=600, soft_time_limit=1, time_limit=2)

    outcome = stock.outcome(job_id, 10)

    assert outcome["code"] == "TIMEOUT"
    assert outcome["limits"]["timeout"]["value"] == 1
    assert outcome["limits"]["grace"]["value"] == 1


CJSON_ONLY = {
    "a hexadecimal number": b'{"headers": {"id": "%s", "task": "sandfleet.run"}, "x": 0x10}',
    "no UTF-8": b'{"headers": {"id": "%s", "task": "sandfleet.run"}, "x": "\xff\xfe"}',
    "5,000 digits": b'{"headers": {"id": "%s", "task": "sandfleet.run"}, "x": ' + b"9" * 5000 + b"}",
    "990 levels": b'{"headers": {"id": "%s", "task": "sandfleet.run"}, "x": ' + b"[" * 990 + b"]" * 990 + b"}",
}


def test_a_message_that_only_lua_can_read_is_refused_at_once(module_stage: Stage, stock: Stock) -> None:
    for case, message in CJSON_ONLY.items():
        job_id = f"cjson-{uuid.uuid4()}"
        stock.redis.lpush(f"{KEY_PREFIX}sandfleet", message % job_id.encode())
        expect_refusal(module_stage, stock, job_id, "SPEC_INVALID")
        assert [attempt["code"] for attempt in stock.outcome(job_id)["attempts"]] == ["SPEC_INVALID"], case


MALFORMED_JOBS = 5000


def test_thousands_of_malformed_jobs_do_not_delay_a_good_one(module_stage: Stage, stock: Stock) -> None:
    """Each gets its outcome in the claimer's thread: through Celery and the pool each took 9 ms."""
    name = uuid.uuid4().hex
    messages = [json.dumps({"headers": {"id": f"malformed-{name}-{number}"}}) for number in range(MALFORMED_JOBS)]
    stock.redis.lpush(f"{KEY_PREFIX}sandfleet", *messages)
    began = time.monotonic()

    assert stock.outcome(stock.submit("true"), 60)["code"] == "OK"

    took = time.monotonic() - began
    assert took < 0.004 * MALFORMED_JOBS, "under a millisecond each, if the machine is not busy"
    for number in (0, MALFORMED_JOBS // 2, MALFORMED_JOBS - 1):
        assert stock.outcome(f"malformed-{name}-{number}")["code"] == "SPEC_INVALID"


MAX_GROWTH_BYTES = 100 << 20


def test_a_spec_that_would_grow_in_the_worker_is_refused_with_its_memory_flat(
    module_stage: Stage, stock: Stock
) -> None:
    """Folders of PATH times the command's name: 240 KB of a spec once became 7 GB."""
    worker = module_stage.workers[0]
    assert stock.outcome(stock.submit("true"))["code"] == "OK"
    # proc_pid_clear_refs: 5 sets the peak back to what is used now.
    Path(f"/proc/{worker.process.pid}/clear_refs").write_text("5")
    before = peak_bytes(worker.process.pid)

    job_id = stock.push(body({"command": ["x" * 100_000], "env": {"PATH": "a:" * 70_000}}))

    expect_refusal(module_stage, stock, job_id, "SPEC_INVALID")
    assert peak_bytes(worker.process.pid) - before < MAX_GROWTH_BYTES
    expect_refusal(
        module_stage, stock, stock.push(body({"command": ["x"], "env": {"PATH": ":" * 140_000}})), "SPEC_INVALID"
    )


def peak_bytes(pid: int) -> int:
    """Return the peak of a process's resident memory (proc_pid_status(5): VmHWM)."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def test_every_fault_is_named(module_stage: Stage, stock: Stock) -> None:
    record = stock.wait(stock.push(body({"timeout": -1, "image": ""})))

    faults = record["result"]["exc_message"][3]
    assert {fault["field"] for fault in faults} == {"timeout", "image"}


def expect_refusal(stage: Stage, stock: Stock, job_id: str, code: str) -> None:
    record = stock.wait(job_id, 15)
    assert record["status"] == "FAILURE"
    assert record["result"]["exc_message"][0] == code
    assert record["result"]["exc_message"][2]["code"] == code
    assert record["result"]["exc_message"][1], "the outcome says why"
    assert not stage.has_started(job_id)
    assert stage.workers[0].process.poll() is None
    assert CANARY not in stage.workers[0].log, "the body is never logged"
