"""Live output: jobs on a real worker, read while they run."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import SecretStr
from sandfleet import Fleet, OutputNotLive, SandboxSpec, Settings
from sandfleet_config.live import (
    CHUNKS_A_SECOND,
    ENTRY_BYTES,
    LIVE_TTL_SECONDS,
    MAX_CHUNK_BYTES,
    MAX_LIVE_BYTES,
    live_batch_key,
    live_key,
)
from sandfleet_config.queues import KEY_PREFIX
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandfleet import Job, OutputChunk
    from stage import Stage

MIB = 1 << 20


def live(script: str, **fields: Any) -> SandboxSpec:
    command = ["sh", "-c", script]
    return SandboxSpec.model_validate(
        {"image": "busybox", "command": command, "timeout": 30, "output": {"live": True}, **fields}
    )


@pytest.fixture(scope="module")
def fleet(module_stage: Stage) -> Iterator[Fleet]:
    with Fleet(Settings(redis_url=SecretStr(module_stage.redis_url))) as fleet:
        yield fleet


def run_command(stage: Stage, *words: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "sandfleet.cli", *words]
    return subprocess.run(command, env=stage.env, capture_output=True, timeout=60, check=False)


def start_command(stage: Stage, *words: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "sandfleet.cli", *words]
    return subprocess.Popen(command, env=stage.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def read_entries(stage: Stage, job: Job) -> list[tuple[int, dict[bytes, bytes]]]:
    """Return the stream's entries as (time in ms, fields)."""
    found: Any = stage.redis.xrange(live_key(job.id))
    return [(int(entry_id.split(b"-")[0]), fields) for entry_id, fields in found]


def test_the_output_of_a_running_job_comes_before_its_end(fleet: Fleet, module_stage: Stage) -> None:
    job = fleet.submit(live("echo one; echo two >&2; sleep 2; echo three; exit 3"))
    seen: list[tuple[OutputChunk, bool]] = [(chunk, job.is_done) for chunk in job.stream(timeout=20)]
    by_stream = {
        name: b"".join(chunk.data for chunk, _ in seen if chunk.stream == name) for name in ("stdout", "stderr")
    }
    assert by_stream == {"stdout": b"one\nthree\n", "stderr": b"two\n"}
    assert [is_done for chunk, is_done in seen if chunk.data in {b"one\n", b"two\n"}] == [False, False]
    assert {(chunk.attempt, chunk.run, chunk.skipped) for chunk, _ in seen} == {(1, 1, 0)}
    assert job.outcome(0).exit_code == 3
    ttl: Any = module_stage.redis.ttl(live_key(job.id))
    assert LIVE_TTL_SECONDS - 20 < ttl <= LIVE_TTL_SECONDS

    async def read() -> list[bytes]:
        return [chunk.data async for chunk in job.stream() if chunk.stream == "stdout"]

    assert b"".join(asyncio.run(read())) == b"one\nthree\n", "it is still there after the end"


def test_a_program_that_prints_as_fast_as_it_can_harms_nobody(fleet: Fleet, module_stage: Stage) -> None:
    job = fleet.submit(live("timeout 6 yes; echo; echo the end", output={"live": True, "keep": "tail"}))
    wait_until(lambda: module_stage.redis.exists(live_key(job.id)), 20, "it prints")
    started = time.monotonic()
    assert fleet.run(live("echo next", output={}), timeout=20).stdout.text == "next\n"
    assert time.monotonic() - started < 3, "other jobs go on"
    used = 0
    while not job.is_done:
        used = max(used, int(module_stage.redis.memory_usage(live_key(job.id)) or 0))
        time.sleep(0.2)

    outcome = job.outcome(10)
    entries = read_entries(module_stage, job)
    data = [fields[b"data"] for _, fields in entries]
    assert outcome.is_ok
    assert outcome.stdout.total_bytes > 50 * MIB
    assert MAX_LIVE_BYTES // 2 < sum(map(len, data)) <= MAX_LIVE_BYTES
    assert used < MAX_LIVE_BYTES * 1.3
    assert max(map(len, data)) <= MAX_CHUNK_BYTES
    times = [at for at, _ in entries]
    assert all(sum(at <= later < at + 1000 for later in times) <= CHUNKS_A_SECOND for at in times), (
        "no second has more chunks"
    )
    assert len(times) / ((times[-1] - times[0]) / 1000) > CHUNKS_A_SECOND / 2

    chunks = [chunk for chunk in job.stream(timeout=5) if chunk.stream == "stdout"]  # the shell says "Terminated"
    assert chunks[0].skipped > 0
    assert sum(len(chunk.data) + chunk.skipped for chunk in chunks) == outcome.stdout.total_bytes
    assert b"".join(chunk.data for chunk in chunks[-2:]).endswith(b"\nthe end\n"), "a chunk may begin anywhere"
    assert all(now.offset == before.end + now.skipped for before, now in itertools.pairwise(chunks))
    sizes: Any = module_stage.redis.hgetall(f"{KEY_PREFIX}live_streams:bytes")
    assert int(sizes[job.id.encode()]) == 512 + sum(len(item) + ENTRY_BYTES for item in data)


def test_a_job_that_does_not_ask_has_no_stream(fleet: Fleet, module_stage: Stage) -> None:
    job = fleet.submit(live("echo x", output={}))
    assert job.outcome(20).is_ok
    assert not module_stage.redis.exists(live_key(job.id))
    with pytest.raises(OutputNotLive, match="submit it with --live"):
        list(job.stream())


def test_a_reader_that_stops_skips_ahead_and_sees_the_gap(fleet: Fleet, module_stage: Stage) -> None:
    job = fleet.submit(live("while true; do head -c 40000 /dev/zero | tr '\\0' x; sleep 0.05; done", timeout=60))
    stream = iter(job.stream(timeout=50))
    first = next(stream)

    def has_dropped_unread() -> bool:
        oldest = read_entries(module_stage, job)[0][1]
        return int(oldest[b"offset"]) > first.end

    wait_until(has_dropped_unread, 40, "more than a MiB has come")
    found = [next(stream) for _ in range(20)]
    job.cancel()
    rest = list(stream)
    assert first.offset == first.skipped, "it starts at the first byte that there was"
    assert max(chunk.skipped for chunk in found) > 0
    position = first.end
    for chunk in found + rest:
        assert chunk.offset - chunk.skipped == position
        position = chunk.end
    assert position == job.outcome(5).stdout.total_bytes, "a cancelled job's last output comes, too"


def test_bytes_and_halves_of_characters_arrive_whole(fleet: Fleet) -> None:
    script = (
        "i=0; while [ $i -lt 4 ]; do printf '\\303'; sleep 0.3; printf '\\251'; sleep 0.3; i=$((i+1)); done;"
        " printf '\\000\\377\\001' >&2"
    )
    job = fleet.submit(live(script))
    chunks = list(job.stream(timeout=20))
    stdout = [chunk for chunk in chunks if chunk.stream == "stdout"]
    assert any(chunk.data.endswith(b"\xc3") for chunk in stdout), "a character was cut in two"
    assert b"".join(chunk.data for chunk in stdout) == "éééé".encode()
    assert "".join(chunk.text for chunk in stdout) == "éééé"
    assert b"".join(chunk.data for chunk in chunks if chunk.stream == "stderr") == b"\x00\xff\x01"


def test_two_readers_get_the_same(fleet: Fleet) -> None:
    job = fleet.submit(live("for i in 1 2 3 4 5; do echo $i; sleep 0.2; done"))

    async def read() -> list[OutputChunk]:
        return [chunk async for chunk in job.stream(timeout=20)]

    async def read_both() -> list[list[OutputChunk]]:
        return list(await asyncio.gather(read(), read()))

    first, second = asyncio.run(read_both())
    assert first == second
    assert "".join(chunk.text for chunk in first) == "1\n2\n3\n4\n5\n"


@pytest.mark.parametrize("ending", ["timeout", "cancel"])
def test_a_timeout_and_a_cancel_end_the_stream(fleet: Fleet, ending: str) -> None:
    job = fleet.submit(live("echo on; sleep 30", timeout=1 if ending == "timeout" else 30, grace=0.5))
    started = time.monotonic()
    for chunk in job.stream(timeout=20):
        assert chunk.text == "on\n"
        if ending == "cancel":
            job.cancel()
    assert time.monotonic() - started < 8
    assert job.outcome(0).code == {"timeout": "TIMEOUT", "cancel": "CANCELLED"}[ending]


def test_logs_follows_a_queued_job_to_its_end(fleet: Fleet, module_stage: Stage) -> None:
    first = fleet.submit(live("sleep 3; echo go"))
    job = fleet.submit(live("echo out; sleep 1; echo err >&2; exit 4", after=[first.id]))
    now = run_command(module_stage, "logs", job.id)
    assert (now.returncode, now.stdout) == (0, b"")
    assert b"has written nothing; -f waits for its output" in now.stderr
    followed = run_command(module_stage, "logs", "-f", job.id)
    assert (followed.returncode, followed.stdout) == (0, b"out\n")
    assert followed.stderr == b"err\nsandfleet: EXIT_NONZERO: the program exited 4\n"
    ended = run_command(module_stage, "logs", job.id)
    assert (ended.stdout, ended.stderr) == (followed.stdout, followed.stderr)


def test_logs_says_how_to_ask(fleet: Fleet, module_stage: Stage) -> None:
    job = fleet.submit(live("sleep 5; echo x", output={}))
    now = run_command(module_stage, "logs", job.id)
    assert now.returncode == 1
    assert b"does not show its output while it runs: submit it with --live" in now.stderr
    job.cancel()
    job.outcome(10)


def test_run_live_prints_each_byte_once(module_stage: Stage) -> None:
    script = "for i in 1 2 3 4 5 6; do echo $i; echo e$i >&2; sleep 0.1; done; exit 5"
    process = start_command(module_stage, "run", "--live", "--image", "busybox", "--", "sh", "-c", script)
    assert process.stdout is not None
    assert process.stdout.read(2) == b"1\n"
    assert process.poll() is None, "it comes before the end"
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (5, b"2\n3\n4\n5\n6\n")
    assert err == b"e1\ne2\ne3\ne4\ne5\ne6\n"


def test_batch_watch_shows_the_lines_of_all_jobs_with_their_names(fleet: Fleet, module_stage: Stage) -> None:
    # The command may need seconds to start, and shows no output of jobs that have ended before.
    script = "sleep 6; echo begin {0}; sleep 1; printf 'end {0}'"
    specs = [live(script.format(name), labels={"name": name}) for name in ("a", "b")]
    fleet.submit_many([*specs, live("echo quiet", output={})], batch="watched")
    watched = run_command(module_stage, "batch", "watch", "watched")
    assert watched.returncode == 0, watched.stderr
    assert sorted(watched.stdout.decode().splitlines()) == ["a | begin a", "a | end a", "b | begin b", "b | end b"]
    assert b"3 of 3 jobs ended, 0 not OK" in watched.stderr
    ttl: Any = module_stage.redis.ttl(live_batch_key("watched"))
    assert 0 < ttl <= LIVE_TTL_SECONDS
