"""Prepared spares: a job that fits becomes the interpreter that is up; any other starts as ever."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from leftovers import left_behind
from preparedhost import PREPARE_SECONDS, SIZE, execute, plan_of, read_version, wait_prepared
from sandfleet_config.codes import ErrorCode
from sandfleet_config.prepared_settings import PreparedSettings
from sandfleet_config.settings import HostSettings, WarmSettings
from sandfleet_config.spec import SandboxSpec
from sandfleet_worker.sandbox.cgroup.tree import find_tree
from sandfleet_worker.sandbox.janitor import sweep
from sandfleet_worker.sandbox.policy import admit
from sandfleet_worker.sandbox.prepared.preparation import Preparation
from sandfleet_worker.sandbox.prepared.registry import Preparations, Registered
from sandfleet_worker.sandbox.prepared_starts import PreparedStarts
from sandfleet_worker.sandbox.process.packed_job import Transfer
from sandfleet_worker.sandbox.runner import RunscRunner
from sandfleet_worker.sandbox.warm import pool as pools
from sandfleet_worker.sandbox.warm.demand import HostLoad
from transferring import new_file
from waiting import wait_until

if TYPE_CHECKING:
    from sandfleet_worker.sandbox.process.plan import Plan

WHO = "import os; print(os.getpid(), os.getcwd(), os.getuid())"


def test_a_job_that_fits_becomes_the_prepared_interpreter(prepared_host: RunscRunner) -> None:
    first = execute(prepared_host, "python3", "-c", "print(1)")
    wait_prepared(prepared_host)
    second = execute(prepared_host, "python3", "-c", WHO)

    assert first.start != "prepared"
    assert second.start == "prepared", prepared_host.read_prepared()
    assert (second.verdict.code, second.stdout.text, second.stderr.text) == (ErrorCode.OK, "2 / 65534\n", "")
    assert second.runtime.warm


def test_a_job_that_ends_at_once_is_told_each_time(prepared_host: RunscRunner) -> None:
    """Init may read that the job was taken after the job has ended."""
    execute(prepared_host, "python3", "-c", "pass")
    for number in range(6):
        wait_prepared(prepared_host)
        ending = execute(prepared_host, "python3", "-c", f"import os; os._exit({number})")
        assert (ending.verdict.exit_code, ending.start) == (number, "prepared")


@pytest.mark.parametrize(
    ("command", "fields", "miss"),
    [
        (("python3", "-u", "-c", WHO), {}, "command"),
        (("python3", "-c", WHO), {"env": ["PYTHONHASHSEED=1"]}, "environment"),
        (("python3", "-c", WHO), {"security": {"read_only_rootfs": False}}, "rootfs"),
        (("python3", "-c", WHO), {"resources": {"memory_bytes": "48MiB"}}, "memory"),
        (("python3", "-c", WHO), {"security": {"user": "65533"}}, "user"),
    ],
)
def test_a_job_that_does_not_fit_starts_as_ever(
    prepared_host: RunscRunner, command: tuple[str, ...], fields: dict[str, object], miss: str
) -> None:
    execute(prepared_host, "python3", "-c", "pass")
    wait_prepared(prepared_host)
    ending = execute(prepared_host, *command, **fields)
    assert (ending.verdict.code, ending.stderr.text) == (ErrorCode.OK, "")
    assert ending.stdout.text.split()[1] == "/"
    assert ending.start != "prepared"
    assert prepared_host.read_prepared().misses[miss] == 1


def test_a_file_that_python_reads_at_its_start_is_found(prepared_host: RunscRunner) -> None:
    execute(prepared_host, "python3", "-c", "pass")
    wait_prepared(prepared_host)
    version = ".".join(map(str, read_version(prepared_host)))
    wait_prepared(prepared_host)
    files = [new_file(f"/tmp/.local/lib/python{version}/site-packages/mine.py", b"x = 42")]
    spec = SandboxSpec(image="python", command=("python3", "-c", "import mine; print(mine.x)"))
    ending = prepared_host.execute(admit(spec, prepared_host.config), transfer=Transfer(files))
    assert (ending.stdout.text, ending.stderr.text) == ("42\n", "")
    assert prepared_host.read_prepared().misses["files"] == 1


def test_a_job_with_too_little_memory_starts_warm_once_a_plain_spare_is_up(prepared_host: RunscRunner) -> None:
    small = {"resources": {"memory_bytes": "48MiB"}}
    execute(prepared_host, "python3", "-c", "pass")
    wait_prepared(prepared_host)
    assert execute(prepared_host, "python3", "-c", WHO, **small).start != "prepared"
    plain = prepared_host._new_plan(prepared_host.images.resolve("python"), prepared_host.config.runsc.platform)
    wait_prepared(prepared_host, plain)
    assert execute(prepared_host, "python3", "-c", WHO, **small).start == "warm"
    assert prepared_host.read_prepared().misses["memory"] == 2


def test_a_preparation_that_comes_later_takes_places_of_the_other_spares(
    prepared_settings: HostSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No memory is kept for it: what the first one leaves has to do."""
    monkeypatch.setattr(PreparedStarts, "find_reserved_bytes", lambda _: 0)
    imports = ("python:one=json", "python:two=decimal")
    settings = {"warm": WarmSettings(size=4), "prepared": PreparedSettings(imports=imports)}
    with RunscRunner(prepared_settings.model_copy(update=settings)) as runner:
        first, second = (
            plan_of(runner, "python", Preparation(*one)) for one in (("one", ("json",)), ("two", ("decimal",)))
        )
        for _ in range(3):
            execute(runner, "python3", "-c", "pass", prepared="one")
        wait_prepared(runner, first)
        execute(runner, "python3", "-c", "pass", prepared="two")
        wait_prepared(runner, second)
        wait_prepared(runner, first)
        assert execute(runner, "python3", "-c", "pass", prepared="two").start == "prepared"


def test_usage_leaves_out_the_preparation(prepared_settings: HostSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    from sandfleet_worker.sandbox import prepared_starts
    from sandfleet_worker.sandbox.prepared.python_source import source

    work = "import time\nwhile time.process_time() < 1.5: pass\nlarge = bytearray(60 << 20)\ndel large\n"
    monkeypatch.setattr(prepared_starts, "source", lambda: work + source())
    with RunscRunner(prepared_settings) as runner:
        execute(runner, "python3", "-c", "pass")
        wait_prepared(runner)
        ending = execute(runner, "python3", "-c", "pass")
    assert ending.start == "prepared"
    assert ending.usage.cpu_seconds is not None
    assert ending.usage.cpu_seconds < 1.2
    if find_tree(prepared_settings.runsc.cgroup_parent).version == 1:
        assert ending.usage.memory_peak_bytes is not None
        assert ending.usage.memory_peak_bytes < 60 << 20


def test_spares_go_when_runsc_is_replaced(
    prepared_settings: HostSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "STALE_POLL_SECONDS", 0.2)
    own = tmp_path / "bin" / "runsc"
    own.parent.mkdir(mode=0o755)
    shutil.copy(shutil.which(prepared_settings.runsc.path) or "", own)
    runsc = prepared_settings.runsc.model_copy(update={"path": str(own)})
    with RunscRunner(prepared_settings.model_copy(update={"runsc": runsc})) as runner:
        execute(runner, "python3", "-c", "pass")
        wait_prepared(runner)
        old = plan_of(runner)
        other = own.with_name("other")
        shutil.copy(own, other)
        other.replace(own)
        wait_until(lambda: not runner._provider.pool.count_idle(old), PREPARE_SECONDS, "the spares are gone")
        assert plan_of(runner) != old
        assert execute(runner, "python3", "-c", "pass").verdict.code is ErrorCode.OK


def test_pinned_spares_follow_the_list_of_preparations(
    prepared_settings: HostSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "STALE_POLL_SECONDS", 0.2)
    settings = prepared_settings.model_copy(
        update={
            "warm": WarmSettings(size=SIZE, images=("python",)),
            "prepared": PreparedSettings(failures=1, quarantine_seconds=2),
        }
    )
    with RunscRunner(settings) as runner:
        starts, pool = runner._starts, runner._provider.pool
        listed = starts.preparations = Preparations(tmp_path, settings.prepared)

        def prepare(*modules: str) -> Plan:
            listed.add(Registered(image="python", name="sci", modules=modules))
            (found,) = listed.list_of("python", "")
            return plan_of(runner, preparation=found)

        first = prepare("json")
        runner.warm_up()
        wait_prepared(runner, first)
        second = prepare("decimal")
        wait_prepared(runner, second)
        assert pool.count_idle(first) == 0

        starts.quarantine.note_failure(second, "it failed")
        pool.forget(second)
        assert pool.count_idle(second) == 0
        wait_prepared(runner, second)
        assert not starts.quarantine.holds(second)

        listed.remove("python", "sci")
        wait_until(lambda: pool.count_idle(second) == 0, PREPARE_SECONDS, "the spares are gone")
        assert execute(runner, "python3", "-c", "pass").start == "warm"


def test_spares_go_when_the_host_is_short_of_memory(
    prepared_host: RunscRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "STALE_POLL_SECONDS", 0.2)
    execute(prepared_host, "python3", "-c", "pass")
    wait_prepared(prepared_host)
    monkeypatch.setattr(HostLoad, "has_free_memory", lambda _: False)
    plan = plan_of(prepared_host)
    wait_until(lambda: not prepared_host._provider.pool.count_idle(plan), PREPARE_SECONDS, "the spares are gone")
    assert execute(prepared_host, "python3", "-c", "pass").verdict.code is ErrorCode.OK


def test_nothing_is_left_of_a_worker_that_was_killed(prepared_settings: HostSettings) -> None:
    root = prepared_settings.runsc.root_dir
    request = {
        "root_dir": str(root),
        "images": str(prepared_settings.images.root),
        "warm": SIZE,
        "sandboxes": 0,
        "start": "python",
        "pinned": ["python"],
        "runsc": prepared_settings.runsc.path,
    }
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, Path(__file__).with_name("victim.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    ) as victim:
        assert victim.stdin is not None
        assert victim.stdout is not None
        victim.stdin.write(json.dumps(request).encode() + b"\n")
        victim.stdin.close()
        try:
            told = iter(victim.stdout.readline, b"")
            assert b"prepared\n" in told
        finally:
            victim.kill()
    report = sweep(root, find_tree(prepared_settings.runsc.cgroup_parent))
    assert report.owners == 1
    assert report.sandboxes >= 1
    assert not left_behind(prepared_settings)
