from __future__ import annotations

import errno
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from sandfleet_worker.sandbox import initproto

SOURCE = Path(initproto.__file__).parent / "native" / "launch.c"
CFLAGS = [
    *("-Os", "-static", "-nostdlib", "-ffreestanding", "-fno-stack-protector", "-fno-pie", "-no-pie"),
    *("-fno-asynchronous-unwind-tables", "-Wl,-z,noexecstack", "-Wl,--build-id=none"),
]


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("cc") is None:
        if os.environ.get("CI"):
            pytest.fail("cc is not installed")
        pytest.skip("cc is not installed")
    binary = tmp_path_factory.mktemp("launch") / "launch"
    subprocess.run(["cc", *CFLAGS, "-Wall", "-Wextra", "-Werror", "-o", str(binary), str(SOURCE)], check=True)
    return binary


def run_launch(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(argument) for argument in arguments], capture_output=True, text=True, check=False)


def test_launch_joins_its_cgroups_by_writing_zero(launch: Path, tmp_path: Path) -> None:
    files = [tmp_path / "a", tmp_path / "b"]
    for file in files:
        file.touch()
    done = run_launch(launch, os.getpid(), 2, *files, "--", "/bin/echo", "--", "hello")
    assert (done.returncode, done.stdout, done.stderr) == (0, "-- hello\n", "")
    assert [file.read_text() for file in files] == ["0", "0"]


def test_launch_says_which_cgroup_it_could_not_join(launch: Path, tmp_path: Path) -> None:
    done = run_launch(launch, os.getpid(), 1, tmp_path / "none", "--", "/bin/true")
    assert (done.returncode, done.stderr) == (120, f"launch: cgroup {tmp_path / 'none'}: {errno.ENOENT}\n")


def test_launch_says_what_it_could_not_execute(launch: Path) -> None:
    done = run_launch(launch, os.getpid(), 0, "--", "/bin/nowhere")
    assert (done.returncode, done.stderr) == (121, f"launch: exec /bin/nowhere: {errno.ENOENT}\n")


def test_launch_does_not_start_for_a_parent_that_is_gone(launch: Path) -> None:
    assert run_launch(launch, os.getppid(), 0, "--", "/bin/true").returncode == 122


@pytest.mark.parametrize("arguments", [[], ["1"], ["x", "0", "--", "a"], ["1", "9", "--", "a"], ["1", "0", "--"]])
def test_launch_refuses_nonsense(launch: Path, arguments: list[str]) -> None:
    assert run_launch(launch, *arguments).returncode == 123


def test_launch_resets_signals(launch: Path) -> None:
    # Python ignores SIGPIPE, and Popen's own reset of it is off here.
    done = subprocess.run(
        [launch, str(os.getpid()), "0", "--", "/bin/grep", "SigIgn", "/proc/self/status"],
        capture_output=True,
        restore_signals=False,
        check=True,
    )
    assert done.stdout.split() == [b"SigIgn:", b"0" * 16]


def test_launched_programs_die_with_their_parent(launch: Path) -> None:
    # The shell is the parent: it must not exec its last command in its own place.
    script = f"'{launch}' $$ 0 -- /bin/sleep 60 & echo $!; read line"
    with subprocess.Popen(
        ["/bin/sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as shell_:
        assert shell_.stdout is not None
        child = int(shell_.stdout.readline())
        deadline = time.monotonic() + 10
        while b"sleep" not in Path(f"/proc/{child}/cmdline").read_bytes():
            assert time.monotonic() < deadline
        shell_.kill()
        # It holds the other end of stdout: its end of file is the end of the child.
        assert shell_.stdout.read() == ""
