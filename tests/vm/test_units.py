"""The units of deploy/systemd on a real systemd: limits, whose memory, drain, clean-up.

Only `make test-vm` runs it: in a virtual machine, with sandfleet in /opt/sandfleet.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cgrouptree import remove_parents
from pydantic import SecretStr
from redis_servers import UserServer
from sandfleet import ErrorCode, Fleet, SandboxSpec, Settings
from sandfleet_config.queues import job_key
from sandfleet_config.settings import HostSettings
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.vm

ROOT = Path(__file__).parents[2]
UNITS, ETC = Path("/etc/systemd/system"), Path("/etc/sandfleet")
WORKER, WEB = "sandfleet-worker.service", "sandfleet-web.service"
CGROUP = Path("/sys/fs/cgroup/system.slice", WORKER)
SLOW = 120.0
"""Seconds; the machine is emulated."""
DRAIN_SECONDS = 40
MIB = 1 << 20


def run(*words: str, is_checked: bool = True) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=400)
    assert not is_checked or done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


def show(unit: str, name: str) -> str:
    return run("systemctl", "show", "--value", f"--property={name}", unit).strip()


def read_journal(unit: str) -> str:
    return run("journalctl", "--no-pager", "--output=cat", f"--unit={unit}")


def count_ready() -> int:
    return read_journal(WORKER).count("action=worker_ready")


def write_env(name: str, **settings: str) -> None:
    file = ETC / name
    file.touch(0o600)
    file.write_text("".join(f"{key}={value}\n" for key, value in settings.items()))


def shell(code: str, **fields: Any) -> SandboxSpec:
    values = {"image": "busybox", "command": ["sh", "-c", code], "timeout": 300, **fields}
    return SandboxSpec.model_validate(values)


@pytest.fixture(scope="module")
def users(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UserServer]:
    with UserServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="module", autouse=True)
def _units(users: UserServer) -> Iterator[None]:
    """Install the units as docs/how-to/systemd.md says."""
    remove_parents(HostSettings().runsc.cgroup_parent)  # other tests of this run have made it
    ETC.mkdir(exist_ok=True)
    for unit in (WORKER, WEB):
        shutil.copy(ROOT / "deploy" / "systemd" / unit, UNITS)
    shutil.copytree("/images", "/var/lib/sandfleet/images", dirs_exist_ok=True)
    write_env(
        "worker.env",
        SANDFLEET_REDIS_URL=users.url("worker"),
        SANDFLEET_RUNSC__PATH="/usr/local/lib/sandfleet/gvisor/bin/runsc",
        SANDFLEET_RUNSC__BOOT_DEADLINE_SECONDS="120",
        SANDFLEET_CONCURRENCY="2",
        SANDFLEET_WARM__SIZE="1",
        SANDFLEET_LEASE_SECONDS="20",
        SANDFLEET_DRAIN_SECONDS=str(DRAIN_SECONDS),
    )
    run("systemctl", "daemon-reload")
    run("systemctl", "start", WORKER)
    try:
        wait_until(count_ready, 2 * SLOW, "the worker is ready")
        yield
    except AssertionError:
        print(read_journal(WORKER))  # noqa: T201  the console of the machine is all that is left of it
        raise
    finally:
        run("systemctl", "stop", WORKER, WEB, is_checked=False)


@pytest.fixture
def fleet(users: UserServer) -> Iterator[Fleet]:
    """A producer; the worker is up."""
    if show(WORKER, "ActiveState") != "active":
        before = count_ready()
        run("systemctl", "start", WORKER)
        wait_until(lambda: count_ready() > before, 2 * SLOW, "the worker is ready again")
    with Fleet(Settings(redis_url=SecretStr(users.url("producer")))) as fleet:
        yield fleet


def find_sandboxes() -> list[str]:
    """Return what runs of sandboxes, and what is mounted for them."""
    mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if "/run/sandfleet/runsc" in line]
    left: list[str] = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (folder / "cmdline").read_bytes()
            left += [words.decode(errors="replace")] if words.startswith(b"runsc") else []
    return mounts + left


def has_started(job_id: str) -> bool:
    return f"action=job_started job_id={job_id}" in read_journal(WORKER)


def test_systemd_itself_finds_no_fault_in_the_units() -> None:
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", WORKER, WEB], capture_output=True, text=True, check=False, cwd=UNITS
    )
    assert (done.stderr.strip(), done.returncode) == ("", 0)


def test_the_worker_is_closed_in_as_its_unit_says() -> None:
    pid = show(WORKER, "MainPID")
    status = Path(f"/proc/{pid}/status").read_text()
    assert "NoNewPrivs:\t1" in status
    capabilities = int(status.partition("CapBnd:\t")[2].split()[0], 16)
    assert not capabilities & 1 << 21, "CAP_SYS_ADMIN"
    assert re.search(r"Max open files +65536 +65536", Path(f"/proc/{pid}/limits").read_text())
    assert Path(f"/proc/{pid}/cgroup").read_text().strip().endswith(f"{WORKER}/worker")
    assert int(Path(f"/proc/{pid}/oom_score_adj").read_text()) == -500
    mounts = Path(f"/proc/{pid}/mountinfo").read_text()
    assert re.search(r" / / ro[, ]", mounts), "the root file system is read-only"
    assert (ETC / "worker.env").stat().st_mode & 0o777 == 0o600


def test_limits_hold_and_memory_is_the_jobs_own(fleet: Fleet) -> None:
    pid = show(WORKER, "MainPID")
    fine = fleet.submit(shell("cat /proc/self/status | head -n 1; exit 3"))
    outcome = fine.outcome(timeout=2 * SLOW)
    assert (outcome.code, outcome.exit_code) == (ErrorCode.EXIT_NONZERO, 3)
    assert {name: limit.enforced for name, limit in outcome.limits.items()} == dict.fromkeys(outcome.limits, True)

    large = {"memory_bytes": 32 * MIB}
    eats = fleet.submit(shell("tail -f /dev/zero", resources=large, max_attempts=1))
    assert eats.outcome(timeout=2 * SLOW).code is ErrorCode.OUT_OF_MEMORY
    forks = fleet.submit(
        shell("for i in $(seq 100); do sleep 9 & done; echo alive", resources={"pids_limit": 32}, max_attempts=1)
    )
    assert forks.outcome(timeout=3 * SLOW).code in {ErrorCode.OK, ErrorCode.EXIT_NONZERO, ErrorCode.PIDS_LIMIT}
    assert show(WORKER, "MainPID") == pid, "no job has hurt the worker"
    assert show(WORKER, "NRestarts") == "0"


def test_the_cgroup_of_a_sandbox_is_below_its_unit(fleet: Fleet) -> None:
    job = fleet.submit(shell("sleep 200"))
    wait_until(lambda: has_started(job.id), SLOW, "it runs")
    limits = [
        int(text) for file in (CGROUP / "jobs").glob("*/memory.max") if (text := file.read_text().strip()) != "max"
    ]
    assert 512 * MIB in limits
    assert not Path("/sys/fs/cgroup/sandfleet").exists(), "nothing is made outside of what systemd has given"
    job.cancel()
    assert job.outcome(timeout=SLOW).code is ErrorCode.CANCELLED


def test_a_stop_drains_and_leaves_nothing(fleet: Fleet, users: UserServer) -> None:
    short, long = fleet.submit(shell("sleep 5; echo done")), fleet.submit(shell("sleep 290"))
    wait_until(lambda: has_started(short.id) and has_started(long.id), 2 * SLOW, "both run")
    began = time.monotonic()
    run("systemctl", "stop", WORKER)
    assert time.monotonic() - began < DRAIN_SECONDS + 60
    assert show(WORKER, "Result") == "success"
    assert short.outcome(timeout=5).stdout.text == "done\n"
    state, attempts = users.admin.hmget(job_key(long.id), "state", "attempts")
    assert state == b"queued"
    assert [attempt["charged"] for attempt in json.loads(attempts)] == [False]
    assert find_sandboxes() == []
    assert not CGROUP.exists()
    assert list(Path("/run/sandfleet/runsc").glob("sandfleet-*")) == []
    assert long.cancel() is not None
    assert long.outcome(timeout=SLOW).code is ErrorCode.CANCELLED


def test_a_killed_worker_is_started_again_and_its_sandboxes_die_with_it(fleet: Fleet) -> None:
    before, pid = count_ready(), show(WORKER, "MainPID")
    job = fleet.submit(shell("sleep 20; echo done"))
    wait_until(lambda: has_started(job.id), SLOW, "it runs")
    run("kill", "-9", pid)
    wait_until(lambda: count_ready() > before, 2 * SLOW, "systemd has started it again")
    outcome = job.outcome(timeout=3 * SLOW)
    assert (outcome.code, len(outcome.attempts)) == (ErrorCode.OK, 2)
    assert outcome.attempts[0].code is ErrorCode.WORKER_LOST


def test_the_web_unit_answers_as_a_user_of_its_own(users: UserServer) -> None:
    help_text = run("/opt/sandfleet/bin/sandfleet-web", "--help")
    assert "serve" in help_text
    (ETC / "web-users").write_text("")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    write_env(
        "web.env",
        SANDFLEET_REDIS_URL=users.url("web"),
        SANDFLEET_WEB__PAGES__PORT=str(port),
        SANDFLEET_WEB__HISTORY__FILE="/var/lib/sandfleet-web/history.sqlite",
    )
    run("systemctl", "start", WEB)

    def answers() -> bool:
        assert show(WEB, "NRestarts") == "0", read_journal(WEB)
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    wait_until(answers, SLOW, "it answers")
    pid = show(WEB, "MainPID")
    status = Path(f"/proc/{pid}/status").read_text()
    assert "CapBnd:\t0000000000000000" in status
    assert not re.search(r"^Uid:\t0\t", status, re.MULTILINE)
    run("systemctl", "stop", WEB)
    assert show(WEB, "Result") == "success"
