"""Each limit, really reached."""

from __future__ import annotations

import gc
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import psutil
import pytest
from jobcgroup import wait_job_cgroup
from sandfleet_config.bounds import MIN_CPU_QUOTA, MIN_DISK_BYTES, MIN_MEMORY_BYTES
from sandfleet_config.codes import ErrorCode
from sandfleet_config.errors import HostResources, OutOfMemory
from sandfleet_config.settings import HostSettings
from sandfleet_config.spec import SandboxSpec
from sandfleet_worker.sandbox.cgroup.tree import CgroupTree
from sandfleet_worker.sandbox.policy import admit, count_cores
from sandfleet_worker.sandbox.runner import RunscRunner
from waiting import wait_until

if TYPE_CHECKING:
    from conftest import Run

ROUNDS = ("cold", "warm", "prepared")

MIB = 1 << 20


def test_memory_is_limited_and_the_code_says_so(python: Run) -> None:
    outcome = python("print('before', flush=True); x = bytearray(1 << 30)", resources={"memory_bytes": "96MiB"})
    assert outcome.code is ErrorCode.OUT_OF_MEMORY
    assert outcome.stdout.text == "before\n"
    assert outcome.usage.memory_peak_bytes is not None
    # The kernel force-charges a dying task: some pages over the limit (try_charge_memcg in mm/memcontrol.c).
    assert outcome.usage.memory_peak_bytes < 97 * MIB
    assert outcome.limits["memory_bytes"].enforced


@pytest.mark.parametrize("platform", ["systrap", "ptrace"])
def test_out_of_memory_is_reported_on_every_platform(python: Run, platform: str) -> None:
    outcome = python("x = bytearray(1 << 30)", platform=platform, resources={"memory_bytes": "96MiB"})
    assert outcome.code is ErrorCode.OUT_OF_MEMORY


def test_files_on_tmp_count_as_memory(run: Run) -> None:
    resources = {"memory_bytes": "48MiB", "disk_bytes": "200MiB"}
    outcome = run("sh", "-c", "dd if=/dev/zero of=/tmp/x bs=1M count=100; exit 1", resources=resources)
    assert outcome.code is ErrorCode.OUT_OF_MEMORY


def test_a_program_that_survives_its_child_is_ok_and_one_that_does_not_is_out_of_memory(python: Run) -> None:
    code = """
import subprocess, sys
print("before", flush=True)
done = subprocess.run([sys.executable, "-c", "x = bytearray(1 << 30)"])
print("after", done.returncode)
"""
    outcome = python(code, resources={"memory_bytes": "128MiB"})
    # Which process the kernel kills is its choice; what the program printed says whether it was the
    # sandbox.
    expected = {
        "before\n": (ErrorCode.OUT_OF_MEMORY, None),
        "before\nafter -9\n": (ErrorCode.OK, 0),
    }
    assert (outcome.code, outcome.exit_code) == expected[outcome.stdout.text]


def test_a_program_that_exits_0_in_spite_of_a_killed_child_is_ok(run: Run) -> None:
    outcome = run("sh", "-c", "sleep 60 & kill -9 $!; wait $!; echo after $?")
    assert (outcome.code, outcome.stdout.text) == (ErrorCode.OK, "after 137\n")


def test_a_process_may_use_the_cpu_of_all_cores_for_its_time_and_no_more(python: Run) -> None:
    outcome = python("import resource; print(*resource.getrlimit(resource.RLIMIT_CPU))", timeout=5, grace=1)
    soft, hard = map(int, outcome.stdout.text.split())
    most = 6 * count_cores() + 1
    assert soft == hard
    assert most <= soft <= most + 2, "a prepared process keeps what its preparation has used"


def test_output_is_truncated_and_counted(run: Run) -> None:
    outcome = run("sh", "-c", "yes | head -c 1000000", output={"max_bytes": 1000})
    assert (outcome.code, outcome.stdout.total_bytes, outcome.stdout.truncated) == (ErrorCode.OK, 1_000_000, True)
    assert outcome.stdout.text == "y\n" * 500


@pytest.mark.parametrize("stream", [1, 2])
def test_the_output_limit_kills_if_the_spec_asks_for_it(run: Run, stream: int) -> None:
    outcome = run(
        "sh", "-c", f"while :; do echo flood >&{stream}; done", output={"max_bytes": 1000, "on_limit": "kill"}
    )
    assert outcome.code is ErrorCode.OUTPUT_LIMIT
    assert len(outcome.stdout.bytes) + len(outcome.stderr.bytes) <= 1000


def test_the_output_limit_is_reported_even_if_the_program_was_faster(run: Run) -> None:
    outcome = run("sh", "-c", "echo 123456", output={"max_bytes": 3, "on_limit": "kill"})
    assert outcome.code is ErrorCode.OUTPUT_LIMIT


def test_a_gibibyte_of_output_is_counted_in_flat_memory(python: Run) -> None:
    gc.collect()
    before = psutil.Process().memory_info().rss
    peak = [before]
    done = threading.Event()

    def poll() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], psutil.Process().memory_info().rss)

    poller = threading.Thread(target=poll)
    poller.start()
    try:
        outcome = python("import os\nb = bytes(1 << 20)\nfor _ in range(1024): os.write(1, b)", timeout=120)
    finally:
        done.set()
        poller.join()
    assert (outcome.code, outcome.stdout.total_bytes, outcome.stdout.truncated) == (ErrorCode.OK, 1 << 30, True)
    assert len(outcome.stdout.bytes) == 64 << 10
    assert peak[0] - before < 64 * MIB


@pytest.mark.parametrize("folder", ["/tmp", "/dev/shm", "$HOME"])
def test_disk_is_limited_in_each_folder_that_a_job_can_write(run: Run, folder: str) -> None:
    command = f"dd if=/dev/zero of={folder}/x bs=1M"
    outcome = run("sh", "-c", command, resources={"disk_bytes": "8MiB"})
    assert (outcome.code, outcome.exit_code) == (ErrorCode.DISK_LIMIT, 1)
    assert "No space left" in outcome.stderr.text


def test_disk_is_one_limit_for_all_writable_folders(run: Run) -> None:
    command = "dd if=/dev/zero of=/tmp/x bs=1M count=6 && dd if=/dev/zero of=/dev/shm/x bs=1M count=6"
    assert run("sh", "-c", command, resources={"disk_bytes": "8MiB"}).code is ErrorCode.DISK_LIMIT


def test_disk_of_a_writable_root_is_limited(python: Run) -> None:
    code = "open('/home/sandbox-test/x', 'wb').write(bytes(64 << 20))"
    root = {"read_only_rootfs": False}
    outcome = python(code.replace("/home/sandbox-test", "/var/tmp"), security=root, resources={"disk_bytes": "8MiB"})
    assert (outcome.code, outcome.exit_code) == (ErrorCode.DISK_LIMIT, 1)


def test_a_full_disk_is_no_fault_of_a_program_that_ends_well(run: Run) -> None:
    outcome = run("sh", "-c", "dd if=/dev/zero of=/tmp/x bs=1M; exit 0", resources={"disk_bytes": "8MiB"})
    assert outcome.code is ErrorCode.OK


FORK_BOMB = """
import os, time
while True:
    try:
        os.fork()
    except OSError:
        time.sleep(0.05)
"""


def test_a_fork_bomb_is_contained(python: Run) -> None:
    outcome = python(FORK_BOMB, timeout=1.5, grace=2, resources={"pids_limit": 32})
    assert outcome.code is ErrorCode.TIMEOUT
    assert outcome.usage.pids_peak is None or outcome.usage.pids_peak < 4 * 32 + 256


COUNT_FORKS = """
import os, time
n = 0
try:
    while True:
        if os.fork() == 0:
            time.sleep(30)
        n += 1
except BlockingIOError:
    print(n)
"""


def test_processes_are_limited(python: Run) -> None:
    assert python(COUNT_FORKS, resources={"pids_limit": 20}).stdout.text == "19\n"


def test_processes_of_root_are_limited(run_as_root: Run) -> None:
    outcome = run_as_root("python3", "-c", COUNT_FORKS, image="python", resources={"pids_limit": 20})
    assert outcome.stdout.text == "19\n"


def test_threads_count_as_processes(python: Run) -> None:
    code = """
import threading, time
n = 1
try:
    while True:
        threading.Thread(target=time.sleep, args=(30,), daemon=True).start()
        n += 1
except RuntimeError:
    print(n, flush=True)
import os; os._exit(0)
"""
    assert python(code, resources={"pids_limit": 20}).stdout.text == "20\n"


def test_the_hosts_process_fuse_is_reported(runner: RunscRunner, python: Run) -> None:
    """The host's own pids limit stops the sandbox: that is no fault of the program.

    Here the limit is lowered by hand while it runs.
    """

    def lower() -> None:
        folder = wait_job_cgroup(runner)
        wait_until(lambda: len((folder / "cgroup.procs").read_text().split()) >= 4, 15, "the sandbox is up")
        time.sleep(2)  # the program is up, and forks slowly
        (folder / "pids.max").write_text("1")

    thread = threading.Thread(target=lower)
    thread.start()
    code = "import os, time\nwhile True:\n    time.sleep(0.05)\n    if os.fork() == 0: time.sleep(30)"
    outcome = python(code, timeout=15)
    thread.join()
    assert outcome.code is ErrorCode.PIDS_LIMIT


def test_cpu_is_limited(python: Run) -> None:
    code = "import time\nend = time.monotonic() + 2\nwhile time.monotonic() < end: pass"
    limited = python(code, resources={"cpu_quota": 25_000})
    assert limited.usage.cpu_seconds is not None
    # A quarter of 2 s, and its boot. Without a limit it is 2 s, unless the machine has other work.
    assert limited.usage.cpu_seconds < 1.0
    assert limited.limits["cpu_quota"].enforced


def test_the_least_that_a_spec_may_ask_for_runs_a_program(run: Run) -> None:
    for request in (
        {"memory_bytes": MIN_MEMORY_BYTES},
        {"cpu_quota": MIN_CPU_QUOTA},
        {"disk_bytes": MIN_DISK_BYTES},
        {"pids_limit": 1},
    ):
        outcome = run("true", resources=request)
        assert outcome.code is ErrorCode.OK, (request, outcome.message)


def test_less_memory_than_a_sandbox_needs_is_out_of_memory(runner: RunscRunner) -> None:
    """No spec asks for so little any more; a message's own words may still be wrong."""
    limits = replace(admit(SandboxSpec(image="busybox", command=["true"]), runner.config), memory_bytes=4 << 20)
    outcome = runner.execute(limits).to_outcome(job_id="x")
    assert outcome.code is ErrorCode.OUT_OF_MEMORY
    assert "the sandbox itself does not fit into 4 MiB of memory" in outcome.message


def test_a_limit_that_cannot_be_enforced_is_refused_unless_allowed_by_name(
    host: HostSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sandfleet_worker.sandbox.runner.find_tree", lambda _parent: CgroupTree(version=2, parents={}))
    spec = SandboxSpec(image="busybox", command=("true",))
    with RunscRunner(host) as runner, pytest.raises(HostResources, match="SANDFLEET_ALLOW_UNENFORCED=memory,pids"):
        runner.run(spec)
    allowed = host.model_copy(update={"allow_unenforced": frozenset({"memory", "pids"})})
    with RunscRunner(allowed) as runner:
        outcome = runner.execute(admit(spec, allowed)).to_outcome(job_id="x")
    assert outcome.code is ErrorCode.OK
    assert not outcome.limits["memory_bytes"].enforced
    assert outcome.limits["disk_bytes"].enforced


def test_every_other_code_is_raised_with_its_outcome(runner: RunscRunner) -> None:
    spec = SandboxSpec.model_validate(
        {
            "image": "python",
            "command": ["python3", "-c", "x = bytearray(1 << 30)"],
            "resources": {"memory_bytes": "96MiB"},
        }
    )
    with pytest.raises(OutOfMemory) as caught:
        runner.run(spec)
    assert caught.value.outcome is not None
    assert caught.value.outcome.code is ErrorCode.OUT_OF_MEMORY


def test_no_cgroup_is_left(runner: RunscRunner, run: Run) -> None:
    run("true")
    runner.drain()
    assert runner._tree.parents
    assert not [path for parent in runner._tree.parents.values() for path in parent.glob(f"{runner._owner.name}.*")]
