"""Encoder processes of ``sandfleet submit``: the result is that of one process, whatever happens."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from bare_redis import forget_jobs
from encoding import Ended, finish, is_there, list_children, read_batch, read_queued, start, submit
from sandfleet.submit import encoders
from sandfleet.submit.chunks import CHUNK_JOBS
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import redis

JOBS = 5 * CHUNK_JOBS + 17
SLOW = """
check = encoders.ChunkEncoder.check
def slow(*words):
    time.sleep(0.3 * in_child())
    return check(*words)
encoders.ChunkEncoder.check = slow
"""
SLOW_ENCODE = SLOW.replace("check", "encode")


@pytest.fixture
def url(redis_server: Any, client: redis.Redis) -> Iterator[str]:
    yield redis_server.url
    forget_jobs(client)


def write_jobs(folder: Path, count: int = JOBS, **changes: dict[str, Any]) -> str:
    """Write a file of jobs; `changes` are fields of the job ``n<index>``."""
    file = folder / "jobs.jsonl"
    with file.open("w") as out:
        for index in range(count):
            job = {
                "image": "python",
                "command": ["python3", "-c", f"print({index}) # \u00e9"],
                "labels": {"n": str(index)},
            }
            out.write(json.dumps(job | changes.get(f"n{index}", {})) + "\n" + "\n" * (index % 100 == 0))
    return str(file)


def submit_all(
    url: str, client: redis.Redis, argv: Sequence[str], change: str = "", **options: Any
) -> tuple[Ended, list[Any]]:
    """Submit as few jobs are, with one core, and with others; check that all did the same.

    Return what that is.
    """
    results: list[tuple[str, list[Any], Any]] = []
    ended = Ended(-1, "", "", 0, 0)
    batch = argv[argv.index("--batch") + 1] if "--batch" in argv else ""
    for cores, forked in ((0, 0), (1, 0), (3, 3)):
        ended = submit(url, argv, change, cores=cores, **options)
        assert (ended.forked, ended.left) == (forked, 0), ended.stderr
        hidden = re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}", "ID", f"{ended.code}\n{ended.stdout}\n{ended.stderr}")
        results.append((hidden, read_queued(client), read_batch(client, batch)))
        forget_jobs(client)
    assert results[0] == results[1]
    assert results[0] == results[2]
    return ended, results[2][1]


@pytest.mark.parametrize(
    "argv",
    [
        ["FILE", "--batch", "b"],
        ["FILE", "--ids"],
        ["FILE", "--batch", "b", "--idempotent", "--json", "--priority", "6", "-e", "A=1", "--max-attempts", "1"],
        ["FILE", "--batch", "b", "--max-failures", "20", "--label", "of=all", "--image", "docker://python:3.13-slim"],
        ["--csv", "TABLE", "--batch", "b", "--label-from", "seed", "--", "run", "{seed}", "{index}"],
        ["--array", f"5-{JOBS + 4}", "--memory", "64MiB", "--", "./task", "{index}"],
    ],
)
def test_jobs_are_the_same_and_in_the_same_order(
    url: str, client: redis.Redis, tmp_path: Path, argv: list[str]
) -> None:
    table = tmp_path / "cases.csv"
    table.write_text("seed\n" + "".join(f"s{number}\n" for number in range(JOBS)))
    names = {"FILE": write_jobs(tmp_path), "TABLE": str(table)}
    ended, queued = submit_all(url, client, [names.get(word, word) for word in argv])
    assert ended.code == 0
    assert len(queued) == JOBS
    assert len({str(job["message"]["body"]) for job in queued}) == JOBS


def test_all_faults_are_told_in_the_order_of_lines(url: str, client: redis.Redis, tmp_path: Path) -> None:
    faulty: dict[str, Any] = {"n3": {"timeout": -1, "comand": []}, "n300": {"image": ""}, "n301": {"command": "x"}}
    file = Path(write_jobs(tmp_path, **faulty, n1200={"security": {"privileged": True}}))
    file.write_text(file.read_text().replace("print(600)", 'print(600)"', 1))
    ended, queued = submit_all(url, client, [str(file)])
    assert (ended.code, queued) == (2, [])
    lines = [int(number) for number in re.findall(r"line (\d+)", ended.stderr)]
    assert lines == sorted(lines)
    assert len(set(lines)) == 5
    assert f"nothing was queued: 5 of {JOBS} lines are faulty" in ended.stderr


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ({"command": ["x" * 2000]}, "the encoded spec has"),
        ({"resources": {"memory_bytes": "1GiB"}}, "is more than any live host has"),
        ({"after": {"batches": ["none"]}}, "there is no batch none"),
        ({"files": [{"from": "no-such-file"}]}, "no-such-file"),
        ({"stdin": {"sha256": "0" * 64, "size": 3}}, "has no object"),
    ],
)
def test_what_only_one_process_can_refuse_is_refused_the_same_way(
    url: str, client: redis.Redis, tmp_path: Path, field: dict[str, Any], said: str
) -> None:
    change = (
        "from sandfleet.channel.redis_channel import RedisChannel\n"
        "RedisChannel.find_largest_budget = lambda self: 1 << 28"
    )
    env = {"SANDFLEET_MAX_SPEC_BYTES": "2000"}
    ended, queued = submit_all(url, client, [write_jobs(tmp_path, n700=field), "--batch", "b"], change, env=env)
    assert (ended.code, queued) == (2, [])
    assert said in ended.stderr


LOST = """
from redis import ConnectionError
from sandfleet.channel.pipelined import PackedCall
sent, send = [], PackedCall._send
def lose(*words):
    sent.append(1)
    send(*words)
    if len(sent) in (1, 3):
        raise ConnectionError
PackedCall._send = lose
"""


@pytest.mark.parametrize("change", ["encoders.CACHED_BYTES = 0", LOST], ids=["no specs are kept", "calls are repeated"])
def test_jobs_are_read_or_sent_twice_and_queued_once(
    url: str, client: redis.Redis, tmp_path: Path, change: str
) -> None:
    ended, queued = submit_all(url, client, [write_jobs(tmp_path), "--batch", "b"], change)
    assert (ended.code, len(queued)) == (0, JOBS)


def test_local_files_are_read_by_the_parent(url: str, client: redis.Redis, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("in")
    file = write_jobs(tmp_path, n700={"stdin": {"from": "in.txt"}}, n701={"files": [{"from": "in.txt"}]})
    ended, queued = submit_all(url, client, [file])
    assert (ended.code, len(queued)) == (0, JOBS)


def test_a_bad_batch_name_and_a_full_queue_are_refused_the_same_way(
    url: str, client: redis.Redis, tmp_path: Path
) -> None:
    file = write_jobs(tmp_path)
    env = {"SANDFLEET_MAX_QUEUED": str(JOBS - 1)}
    ended, queued = submit_all(url, client, [file], env=env)
    assert (ended.code, queued) == (1, [])
    assert "would pass max_queued" in ended.stderr
    said = submit(url, [file, "--batch", "x\x07"])
    assert (said.code, said.forked) == (2, 0)
    assert "batch" in said.stderr


@pytest.mark.parametrize("step", ["check", "encode"])
@pytest.mark.parametrize("how", ["os.kill(os.getpid(), signal.SIGKILL)", "raise MemoryError"])
def test_the_parent_does_what_a_dead_process_owes(
    url: str, client: redis.Redis, tmp_path: Path, step: str, how: str
) -> None:
    """Of the last process, as its first act; of another, in its second chunk."""
    change = (
        f"done, real = [], encoders.ChunkEncoder.{step}\n"
        "def die(self, chunk, *more):\n"
        f"    if in_child() and chunk in (2, 4):\n        {how}\n"
        "    return real(self, chunk, *more)\n"
        f"encoders.ChunkEncoder.{step} = die"
    )
    ended, queued = submit_all(url, client, [write_jobs(tmp_path), "--batch", "b"], change)
    assert (ended.code, len(queued)) == (0, JOBS)


def test_the_parent_goes_on_in_the_middle_of_a_chunk(url: str, client: redis.Redis, tmp_path: Path) -> None:
    change = (
        "from sandfleet.submit import chunks\nchunks.CHUNK_JOBS = 100\n"
        "def die(frame, left=[5]):\n    left[0] -= 1\n    return left[0] or os._exit(1)\n"
        "send = encoders.Child.__init__.__globals__['Outlet'].send\n"
        "def count(self, frame):\n    die(frame)\n    send(self, frame)\n"
        "encoders.Child.__init__.__globals__['Outlet'].send = count"
    )
    ended, queued = submit_all(url, client, [write_jobs(tmp_path), "--batch", "b"], change)
    assert (ended.code, len(queued)) == (0, JOBS)


@pytest.mark.parametrize(("change", "is_queued"), [(SLOW, False), (SLOW_ENCODE, True)])
def test_ctrl_c_ends_all_processes(
    url: str, client: redis.Redis, tmp_path: Path, change: str, *, is_queued: bool
) -> None:
    process = start(url, [write_jobs(tmp_path), "--batch", "b"], change, start_new_session=True)
    wait_until(lambda: len(list_children(process.pid)) == 3, 20, "the processes are there")
    if is_queued:
        wait_until(lambda: client.exists("sandfleet:batch:b"), 20, "a chunk is queued")
    os.killpg(process.pid, signal.SIGINT)
    ended = finish(process)
    assert (ended.code, ended.forked, ended.left) == (130, 3, 0), ended.stderr
    queued = len(read_queued(client))
    assert (0 < queued < JOBS) if is_queued else not queued
    if is_queued:
        assert f"of {JOBS} jobs were queued. To wait: sandfleet batch wait b" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_ctrl_c_while_the_processes_start_leaves_none(url: str, tmp_path: Path) -> None:
    """The signal comes at the second fork: it waits until all are known, and then ends them."""
    change = (
        "fork_and_count = os.fork\ndef fork_once_more():\n    if len(forks) == 1:\n"
        "        os.kill(parent, signal.SIGINT)\n    return fork_and_count()\nos.fork = fork_once_more\n"
    )
    ended = submit(url, [write_jobs(tmp_path), "--batch", "b"], change)
    assert (ended.code, ended.forked, ended.left) == (130, 3, 0), ended.stderr


def test_ctrl_c_once_the_processes_are_there_leaves_none(url: str, tmp_path: Path) -> None:
    """The signal comes before the first line that is run once the ``with`` has started them."""
    change = (
        "def interrupt(frame, event, arg):\n    if len(forks) == 3 and event == 'line':\n"
        "        sys.settrace(None)\n        os.kill(parent, signal.SIGINT)\n"
        "    file = os.path.basename(frame.f_code.co_filename)\n"
        "    return interrupt if file in ('submit_command.py', 'contextlib.py') else None\n"
        "sys.settrace(interrupt)\n"
    )
    ended = submit(url, [write_jobs(tmp_path), "--batch", "b"], change)
    assert (ended.code, ended.forked, ended.left) == (130, 3, 0), ended.stderr


@pytest.mark.parametrize("change", [SLOW, SLOW_ENCODE])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_process_outlives_its_parent(url: str, tmp_path: Path, change: str, number: signal.Signals) -> None:
    process = start(url, [write_jobs(tmp_path), "--batch", "b"], change)
    wait_until(lambda: len(list_children(process.pid)) == 3, 20, "the processes are there")
    children = list_children(process.pid)
    process.send_signal(number)
    process.communicate(timeout=20)
    wait_until(lambda: not any(map(is_there, children)), 10, "they have ended")


def test_redis_goes_away_in_the_middle(tmp_path: Path) -> None:
    """The private server is killed before its fourth chunk: the same words with and without processes."""
    said: list[str] = []
    for cores in (0, 1, 3):
        with tempfile.TemporaryDirectory(prefix="sandfleet-test-") as folder:
            socket = Path(folder) / "s"
            server = subprocess.Popen(
                ["redis-server", "--port", "0", "--unixsocket", str(socket), "--save", ""], cwd=folder, stdout=-3
            )
            wait_until(socket.exists, 20, "the server is up")
            change = (
                "from sandfleet.channel.capacity import Capacity\ncalls = []\n"
                "def check(self, client):\n    calls.append(1)\n"
                f"    if len(calls) == 4:\n        os.kill({server.pid}, 9)\n        time.sleep(0.2)\n"
                "Capacity.check = check"
            )
            ended = submit(f"unix://{socket}", [write_jobs(tmp_path), "--batch", "b"], change, cores=cores)
            server.wait(10)
        assert (ended.code, ended.left) == (125, 0)
        said.append(ended.stderr.replace(folder, "F"))
    assert said[0] == said[1] == said[2]
    assert f"at least {3 * CHUNK_JOBS} of {JOBS} jobs were queued" in said[1]
    assert "cannot reach Redis" in said[1]


def test_no_process_is_forked_beside_a_thread_or_on_one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    ended = threading.Event()
    thread = threading.Thread(target=ended.wait)
    thread.start()
    try:
        assert encoders.count_processes() == 0
    finally:
        ended.set()
        thread.join()
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    assert encoders.count_processes() == 0


def test_few_jobs_are_submitted_as_ever(url: str, client: redis.Redis, tmp_path: Path) -> None:
    assert submit(url, [write_jobs(tmp_path, 40)], "submitting.LEAST_JOBS = 41").forked == 0
    assert submit(url, [write_jobs(tmp_path, 41)], "submitting.LEAST_JOBS = 41").forked == 3
    assert len(read_queued(client)) == 81


def test_a_system_without_fcntl_submits_by_one_process() -> None:
    code = "import sys; sys.modules['fcntl'] = None; from sandfleet import Fleet; print(Fleet.__name__)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "Fleet\n"
