"""The launcher: cgroups, signals, the command that it becomes, and its exits."""

from __future__ import annotations

import ast
import contextlib
import errno
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sandfleet_worker.sandbox.process.launcher import encode_command
from sandfleet_worker.sandbox.process.runsc import NATIVE

SOURCE = NATIVE / "launch.c"
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


def encode(*command: object) -> bytes:
    return encode_command([str(word) for word in command])


def run_launch(launch: Path, *arguments: object, message: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run the launcher with `message` on its standard input, from which it takes the command."""
    command = [str(argument) for argument in (launch, *arguments)]
    return subprocess.run(command, input=message, capture_output=True, check=False)


def test_launch_joins_its_cgroups_by_writing_zero(launch: Path, tmp_path: Path) -> None:
    files = [tmp_path / "a", tmp_path / "b"]
    for file in files:
        file.touch()
    done = run_launch(launch, os.getpid(), 0, 0, 1, 2, *files, message=encode("/bin/echo", "a b", "", "hello"))
    assert (done.returncode, done.stdout, done.stderr) == (0, b"a b  hello\n", b"")
    assert [file.read_text() for file in files] == ["0", "0"]


def test_launch_reads_no_byte_beyond_its_command(launch: Path) -> None:
    # What follows on the pipe is init's: the job.
    done = run_launch(launch, os.getpid(), 0, 0, 1, 0, message=encode("/bin/cat") + b"the job")
    assert (done.returncode, done.stdout) == (0, b"the job")


def test_launch_waits_for_its_command_and_ends_without_one(launch: Path) -> None:
    assert run_launch(launch, os.getpid(), 0, 0, 1, 0).returncode == 0
    assert run_launch(launch, os.getpid(), 0, 0, 1, 0, message=encode("/bin/echo", "x")[:-3]).returncode == 0


@pytest.mark.parametrize("length", [0, (1 << 16) + 1, 1 << 31])
def test_launch_refuses_a_command_of_a_wrong_length(launch: Path, length: int) -> None:
    done = run_launch(launch, os.getpid(), 0, 0, 1, 0, message=length.to_bytes(4, "little") + b"x" * 70000)
    assert done.returncode == 123


def test_launch_says_which_cgroup_it_could_not_join(launch: Path, tmp_path: Path) -> None:
    done = run_launch(launch, os.getpid(), 0, 0, 1, 1, tmp_path / "none")
    assert (done.returncode, done.stderr.decode()) == (120, f"launch: cgroup {tmp_path / 'none'}: {errno.ENOENT}\n")


def test_launch_names_the_program_that_it_could_not_execute(launch: Path) -> None:
    done = run_launch(launch, os.getpid(), 0, 0, 1, 0, message=encode("/bin/nowhere"))
    assert (done.returncode, done.stderr) == (121, f"launch: exec /bin/nowhere: {errno.ENOENT}\n".encode())


def test_launch_does_not_start_for_a_parent_that_is_gone(launch: Path) -> None:
    assert run_launch(launch, os.getppid(), 0, 0, 1, 0, message=encode("/bin/true")).returncode == 122


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["1"],
        ["1", "0", "0"],
        ["x", "0", "0", "0", "0"],
        ["1", "0", "0", "0", "9", "a"],
        ["1", "0", "0", "0", "0", "a"],
    ],
)
def test_launch_refuses_nonsense(launch: Path, arguments: list[str]) -> None:
    assert run_launch(launch, *arguments).returncode == 123


@pytest.mark.parametrize("batch", ["0", "1"])
def test_launch_resets_signals_and_becomes_a_batch_process_if_asked_to(launch: Path, batch: str) -> None:
    # Python ignores SIGPIPE, and Popen's own reset of it is off here.
    code = "import os; print(os.sched_getscheduler(0) == os.SCHED_BATCH, open('/proc/self/status').read())"
    done = subprocess.run(
        [launch, str(os.getpid()), "0", "0", batch, "0"],
        input=encode(sys.executable, "-S", "-c", code),
        capture_output=True,
        restore_signals=False,
        check=True,
    )
    assert done.stdout.startswith(b"True " if batch == "1" else b"False ")
    # But for SIGPIPE, which the interpreter ignores by itself.
    assert b"SigIgn:\t0000000001001000\n" in done.stdout


def query_membarrier(launch: Path, allowed: int) -> int:
    """Return membarrier(MEMBARRIER_CMD_QUERY) of a launched program, negative for an errno."""
    number = {"x86_64": 324, "aarch64": 283}[platform.machine()]
    code = f"import ctypes; c = ctypes.CDLL(None, use_errno=True); r = c.syscall({number}, 0, 0, 0)"
    message = encode(sys.executable, "-S", "-c", f"{code}; print(r if r >= 0 else -ctypes.get_errno())")
    return int(run_launch(launch, os.getpid(), 0, allowed, 1, 0, message=message).stdout)


def test_launch_hides_membarrier_unless_it_is_allowed(launch: Path) -> None:
    assert query_membarrier(launch, 0) == -errno.ENOSYS
    assert query_membarrier(launch, 1) > 0


def test_launched_programs_die_with_their_parent(launch: Path) -> None:
    # The shell is the parent, and waits. It gives what runs in the background /dev/null as standard
    # input.
    script = f"exec 3<&0; '{launch}' $$ 3 0 1 0 & echo $!; wait"
    with subprocess.Popen(["/bin/sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as shell_:
        assert shell_.stdout is not None
        assert shell_.stdin is not None
        shell_.stdin.write(encode("/bin/sleep", "60"))
        shell_.stdin.flush()
        child = int(shell_.stdout.readline())
        deadline = time.monotonic() + 10
        while b"sleep" not in Path(f"/proc/{child}/cmdline").read_bytes():
            assert time.monotonic() < deadline
        shell_.kill()
        # It holds the other end of stdout: its end of file is the end of the child.
        assert shell_.stdout.read() == b""


def test_launch_keeps_only_its_descriptors_and_goes_to_the_root_folder(launch: Path) -> None:
    with contextlib.ExitStack() as stack:
        # Neither has O_CLOEXEC once it is inherited; the numbers come in no order.
        command_r, command_w = os.pipe()
        leaks = [os.open("/dev/null", os.O_RDONLY) for _ in range(4)]
        for fd in (command_r, command_w, *leaks):
            stack.callback(os.close, fd)
        kept, leaked = (leaks[3], leaks[1]), (leaks[0], leaks[2])
        code = "import os; print(os.getcwd(), sorted(set(map(int, os.listdir('/proc/self/fd'))) & set(range(1000))))"
        os.write(command_w, encode(sys.executable, "-S", "-c", code))
        done = subprocess.run(
            [launch, str(os.getpid()), str(command_r), "0", "1", "0", *map(str, kept)],
            pass_fds=(command_r, *leaks),
            capture_output=True,
            text=True,
            check=True,
        )
    folder, _, text = done.stdout.partition(" ")
    found = set(ast.literal_eval(text))
    assert folder == "/"
    assert {0, 1, 2, command_r, *kept} <= found
    assert not found & set(leaked)
