"""Attacks on the collection of files: it reads nothing outside, bounds hold, the verdict stays."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from attacking import PRELUDE, answers
from sandfleet_config.codes import ErrorCode
from sandfleet_worker.sandbox.process.artifacts import CollectLimits
from transferring import BOUNDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transferring import Carried, Carry


ROUNDS = ("cold", "prepared")


def leave(carry: Carry, code: str, *patterns: str, limits: CollectLimits = BOUNDS, **fields: Any) -> Carried:
    """Run Python code that exits 3 and leaves files."""
    carried = carry(
        *("python3", "-c", f"{PRELUDE}\n{code}\nopen('good', 'w').write('good')\nsys.stdout.flush()\nos._exit(3)"),
        artifacts=patterns,
        limits=limits,
        image="python",
        **fields,
    )
    assert (carried.outcome.code, carried.outcome.exit_code) == (ErrorCode.EXIT_NONZERO, 3), carried.outcome.stderr.text
    return carried


@pytest.mark.parametrize("target", ["/etc/passwd", "/proc/self/environ", "/proc/1/status", "good", "/dev/zero"])
def test_a_link_is_not_followed(carry: Carry, target: str) -> None:
    carried = leave(carry, f"os.symlink({target!r}, 'link')", "*")
    assert list(carried.files) == ["good"]
    assert carried.lost == "link: a symbolic link is never collected"


@pytest.mark.parametrize("target", ["/etc", "/proc/self", "/", ".."])
def test_a_link_to_a_folder_is_not_entered(carry: Carry, target: str) -> None:
    carried = leave(carry, f"os.symlink({target!r}, 'out')", "out/*", "out/**", "out/etc/*", "**/passwd", "good")
    assert list(carried.files) == ["good"]
    why = "no folder, or behind a symbolic link, which is never followed"
    assert carried.lost == f"out: {why}; out/etc: {why}"


def test_a_folder_that_is_swapped_for_a_link_during_the_walk_is_not_entered(carry: Carry) -> None:
    code = """
os.makedirs("out/deep")
open("out/passwd", "w").write("inside"), open("out/deep/passwd", "w").write("inside")
os.symlink("/etc", "link")
for _ in range(4):
    if os.fork() == 0:
        os.setsid()
        while True:
            attempt(os.rename, "out", "aside"), attempt(os.rename, "link", "out")
            attempt(os.rename, "out", "link"), attempt(os.rename, "aside", "out")
"""
    carried = leave(carry, code, "**", "out/**/passwd", "good")
    assert {data for path, data in carried.files.items() if path != "good"} <= {b"inside"}


def test_a_fifo_does_not_block(carry: Carry) -> None:
    carried = leave(carry, "os.mkfifo('fifo')", "*")
    assert (list(carried.files), carried.lost) == (["good"], "fifo: a fifo is never collected")


def test_a_socket_is_left_out(carry: Carry) -> None:
    carried = leave(carry, "socket.socket(socket.AF_UNIX).bind('socket')", "*")
    assert (list(carried.files), carried.lost) == (["good"], "socket: a socket is never collected")


def test_a_device_is_not_opened(carry: Carry) -> None:
    """Releases before 20260427 let anyone make its node."""
    carried = leave(carry, "tell('mknod', attempt(os.mknod, 'zero', 0o666 | stat.S_IFCHR, os.makedev(1, 5)))", "*")
    made = answers(carried.outcome)["mknod"]
    assert (list(carried.files), made) in ((["good"], "done"), (["good"], "EPERM"))
    assert carried.lost == ("zero: a device is never collected" if made == "done" else "")


def test_a_file_that_grows_while_it_is_read_has_stopped_to_grow(carry: Carry) -> None:
    code = """
for _ in range(4):
    if os.fork() == 0:
        os.setsid()
        file = open("grows", "ab", 0)
        while True:
            file.write(bytes(100))
while not os.path.exists("grows") or os.stat("grows").st_size < 1000:
    pass
"""
    carried = leave(carry, code, "*")
    assert list(carried.files) == ["good", "grows"]
    assert carried.files["grows"].strip(b"\0") == b""


def test_of_a_million_files_only_so_many_are_looked_at(carry: Carry) -> None:
    code = """
os.mkdir("out"), open("out/0", "w")
for number in range(1, 60000):
    os.link("out/0", f"out/{number}")
"""
    began = time.monotonic()
    carried = leave(carry, code, "out/*", "*", limits=CollectLimits(max_files=10))
    assert time.monotonic() - began < 40
    assert len(carried.files) == 10
    assert "out: there are more than 50000 files and folders; the others were not looked at" in carried.lost
    assert carried.lost.endswith("; at most 10 files are collected (SANDFLEET_POLICY__ARTIFACT_FILES)")


def test_a_sparse_file_of_a_terabyte_is_refused_by_its_size(carry: Carry) -> None:
    carried = leave(carry, "open('sparse', 'w').truncate(1 << 40)", "*")
    assert list(carried.files) == ["good"]
    assert carried.lost == (
        "1 of 2 files were collected: sparse: has 1 TiB, more than 64 MiB (SANDFLEET_POLICY__ARTIFACT_BYTES)"
    )


def test_names_that_could_forge_lines_are_left_out_and_told_safely(carry: Carry) -> None:
    code = r"""
for name in (b"a\nE 0 0 1", "b\u202etxt.exe".encode(), b"c\xff", b"d\x1b[2J", "\u05e9\u05dc\u05d5\u05dd".encode(), b"-rf *"):
    open(name, "w").write("x")
"""
    carried = leave(carry, code, "*")
    assert set(carried.files) == {"good", "שלום", "-rf *"}
    assert carried.lost.count("its name has control characters") == 4
    assert carried.lost.isprintable()
    assert carried.lost.isascii()


def test_a_path_of_five_thousand_characters_is_left_out(carry: Carry) -> None:
    code = """
here = os.getcwd()
for _ in range(25):
    os.mkdir("n" * 200), os.chdir("n" * 200)
open("f", "w"), os.chdir(here)
for _ in range(100):
    os.mkdir("d"), os.chdir("d")
open("f", "w"), os.chdir(here)
"""
    carried = leave(carry, code, "**")
    assert list(carried.files) == ["good"]
    assert "File name too long" in carried.lost
    assert "folders are searched 64 deep; those below were not looked at" in carried.lost
    assert len(carried.lost) < 1000


@pytest.mark.parametrize(
    "patterns",
    [["*a" * 400 + "b"], ["**/*a/" * 200 + "b"], ["[a-z]*" * 150 + "0"] * 50],
    ids=["stars", "folders", "sets"],
)
def test_a_glob_that_would_take_minutes_does_not(carry: Carry, patterns: Sequence[str]) -> None:
    code = """
name = "a" * 250
for number in range(300):
    open(f"{number:03}" + name, "w")
os.makedirs("/".join(["a"] * 50))
"""
    began = time.monotonic()
    carried = leave(carry, code, *patterns, "good", limits=CollectLimits(seconds=5))
    assert time.monotonic() - began < 30
    assert carried.lost in {"", "the collection took longer than 5 s"}
    assert list(carried.files) == ([] if carried.lost else ["good"])


ATTACK = """
tell("kills", {attempt(os.kill, 1, number) for number in range(1, 65)})
tell("group", attempt(os.killpg, 1, signal.SIGKILL))
for name, request in (("attach", 16), ("seize", 0x4206)):
    tell(name, call("ptrace", request, 1, 0, 0))
for path in ("/proc/1/mem", "/proc/1/fd/3", "/proc/1/fd/4"):
    for flag in (os.O_RDONLY, os.O_WRONLY):
        tell(f"{path}:{flag}", attempt(os.open, path, flag))
status = dict(line.split(":\\t") for line in open("/proc/1/status").read().splitlines() if line.startswith("Cap"))
tell("effective", status["CapEff"])
open("good", "w").write("good")
sys.stdout.flush()
os.kill(-1, signal.SIGKILL)
"""


@pytest.mark.parametrize("user", ["nobody", "root"])
def test_no_signal_and_no_ptrace_reaches_the_collector(request: pytest.FixtureRequest, user: str) -> None:
    fixture = request.getfixturevalue("carry" if user == "nobody" else "carry_as_root")
    security = {} if user == "nobody" else {"user": "0:0"}
    carried = fixture(
        "python3", "-c", PRELUDE + ATTACK + "\nos._exit(3)", artifacts=["*"], image="python", security=security
    )
    told = answers(carried.outcome)
    assert told.pop("effective") == f"{1 << 5:016x}", "CAP_KILL is all that is in force"
    assert told.pop("kills") == "{'EPERM'}"
    assert told.pop("group") in {"EPERM", "ESRCH"}
    assert set(told.values()) <= {"EPERM", "EACCES", "EIO", "ESRCH"}
    assert carried.files == {"good": b"good"}
    assert carried.outcome.code in {ErrorCode.EXIT_NONZERO, ErrorCode.SIGNALED}
    assert carried.lost == ""


def test_a_fork_bomb_does_not_outlive_its_job(carry: Carry) -> None:
    code = """
if os.fork() == 0:
    while True:
        attempt(os.fork)
        attempt(open("grows", "ab", 0).write, b"x")
import time
time.sleep(1)
"""
    began = time.monotonic()
    carried = leave(carry, code, "good", resources={"pids_limit": 30})
    assert carried.files == {"good": b"good"}
    assert time.monotonic() - began < 60
