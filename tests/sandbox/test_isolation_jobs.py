"""What a hostile program tries on other jobs, for privileges and on the worker, and does not get: one attack a test."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from attacking import REFUSED, SECRET, WRITABLE, answers
from sandfleet_config.codes import ErrorCode
from sandfleet_worker.sandbox.image.store import ImageStore

if TYPE_CHECKING:
    from collections.abc import Iterator

    from attacking import Attack
    from conftest import Run
    from sandfleet_config.outcome import Outcome
    from sandfleet_config.settings import HostSettings
    from sandfleet_worker.sandbox.runner import RunscRunner

# ---- the next job ----

DIGEST = """
import hashlib

ROUNDS = ("cold", "warm")
digest = hashlib.sha256()
for folder, folders, files in os.walk("/"):
    folders[:] = sorted(name for name in folders if os.path.join(folder, name) not in ("/proc", "/sys", "/dev"))
    for name in sorted(files):
        path = os.path.join(folder, name)
        facts = os.lstat(path)
        digest.update(f"{path} {facts.st_mode} {facts.st_uid} {facts.st_gid} {facts.st_size}".encode())
        if stat.S_ISREG(facts.st_mode) and path.startswith(("/etc", "/usr/bin")):
            attempt(lambda: digest.update(open(path, "rb").read()))
tell("digest", digest.hexdigest())
"""

ALTER = """
count = 0
for folder, folders, files in os.walk("/"):
    folders[:] = [name for name in folders if os.path.join(folder, name) not in ("/proc", "/sys", "/dev", "/usr/lib")]
    if attempt(lambda: open(os.path.join(folder, "planted"), "w").write("x")) == "done": count += 1
    for name in files:
        path = os.path.join(folder, name)
        attempt(os.chmod, path, 0o777)
        attempt(lambda: open(path, "ab").write(b"planted"))
        attempt(os.rename, path, path + ".moved")
        attempt(os.unlink, path + ".moved")
tell("planted", count)
"""


@pytest.mark.parametrize("security", [{}, WRITABLE], ids=["read-only", "writable"])
def test_the_image_is_the_same_for_the_next_job(
    runner: RunscRunner, attack: Attack, security: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    erofs = runner.images.resolve("python").erofs_path
    before = hashlib.sha256(erofs.read_bytes()).digest()
    clean = answers(attack(DIGEST, security=security))
    planted = int(answers(attack(ALTER, security=security))["planted"])
    # As root by policy in a writable root all of the image can be changed, for this one job.
    assert (planted > 20) == ("root" in request.node.callspec.id and bool(security)), planted
    assert answers(attack(DIGEST, security=security)) == clean
    assert hashlib.sha256(erofs.read_bytes()).digest() == before


LEAVE = f"""
for folder in ("/tmp", "/dev/shm", os.environ["HOME"], "/var/tmp"):
    attempt(lambda: open(folder + "/{SECRET}", "w").write("x"))
libc.shmget(4242, 4096, 0o1666)
socket.socket(socket.AF_UNIX).bind("\\0{SECRET}")
tell("left", True)
"""

LOOK = f"""
found = [path for path in ("/tmp", "/dev/shm", os.environ["HOME"], "/var/tmp") if "{SECRET}" in os.listdir(path)]
tell("files", found)
tell("shared memory", call("shmget", 4242, 4096, 0))
tell("processes", [name for name in os.listdir("/proc") if name.isdecimal() and int(name) not in (1, os.getpid())])
tell("socket", attempt(socket.socket(socket.AF_UNIX).connect, "\\0{SECRET}"))
"""
SEES_NOTHING = {"files": "[]", "shared": "memory ENOENT", "processes": "[]", "socket": "ECONNREFUSED"}


def test_a_job_finds_nothing_of_the_one_before(attack: Attack) -> None:
    own = answers(attack(LEAVE + LOOK, security=WRITABLE))
    assert own["files"] != "[]"
    assert own["shared"] == "memory done"
    assert answers(attack(LOOK, security=WRITABLE)) == SEES_NOTHING


def test_a_job_sees_nothing_of_the_one_beside_it(attack: Attack) -> None:
    outcomes: list[Outcome] = []
    code = LEAVE + "import time; time.sleep(4)\nos.write(1, b'end 1\\n')"
    neighbour = threading.Thread(target=lambda: outcomes.append(attack(code, security=WRITABLE)))
    neighbour.start()
    # It looks when the other one has long left its traces; that it still ran then is checked below.
    outcome = attack(f"import time; time.sleep(2)\n{LOOK}", security=WRITABLE)
    assert neighbour.is_alive()
    neighbour.join()
    assert answers(outcomes[0])["end"] == "1"
    assert answers(outcome) == SEES_NOTHING


# ---- privileges ----


def test_no_capability_is_left(attack: Attack) -> None:
    outcome = attack("""
for line in open("/proc/self/status"):
    if line.startswith("Cap"): tell(*line.replace(":", "").split())
tell("nnp", libc.prctl(39, 0, 0, 0, 0))
""")
    told = answers(outcome)
    assert told.pop("nnp") == "1"
    assert len(told) >= 4
    assert set(told.values()) == {"0" * 16}


@pytest.mark.parametrize("security", [{}, WRITABLE], ids=["read-only", "writable"])
def test_no_privileged_call_works(attack: Attack, security: dict[str, Any]) -> None:
    outcome = attack(
        """
tell("mount", call("mount", b"t", b"/tmp", b"tmpfs", 0, 0))
tell("bind", call("mount", b"/", b"/tmp", 0, 4096, 0))
tell("remount", call("mount", 0, b"/", 0, 32, 0))
tell("umount", call("umount2", b"/tmp", 2))
tell("chroot", attempt(os.chroot, "/tmp"))
tell("pivot_root", call("syscall", 155, b"/tmp", b"/tmp"))
tell("setuid", attempt(os.setresuid, 1, 1, 1))
tell("setgroups", attempt(os.setgroups, [0]))
tell("sethostname", attempt(socket.sethostname, "x"))
tell("chown", attempt(os.chown, "/tmp", 1, 1))
tell("user namespace", call("unshare", 0x10000000))
tell("all namespaces", call("unshare", 0x10000000 | 0x20000 | 0x20000000 | 0x40000000))
tell("mount namespace", call("unshare", 0x20000))
tell("setns", call("setns", os.open("/proc/self/ns/mnt", 0) if os.path.exists("/proc/self/ns/mnt") else 0, 0))
rlimit = (ctypes.c_ulong * 2)(1 << 30, 1 << 30)
tell("rlimit", call("setrlimit", 6, rlimit))
""",
        security=security,
    )
    told = {line.rsplit(" ", 1)[0]: line.rsplit(" ", 1)[1] for line in outcome.stdout.text.splitlines()}
    assert len(told) == 15, outcome.stderr.text
    assert {name: answer for name, answer in told.items() if answer not in REFUSED | {"EINVAL"}} == {}


@pytest.fixture
def suid_image(host: HostSettings, tmp_path: Path) -> Iterator[str]:
    """Return an image with a set-uid-root shell in it."""
    tree = tmp_path / "suid"
    (tree / "bin").mkdir(parents=True)
    (tree / "var").mkdir()
    shutil.copy(shutil.which("busybox") or "", tree / "bin/busybox")
    for name in ("sh", "id", "grep", "cat"):
        (tree / "bin" / name).symlink_to("busybox")
    shutil.copy(tree / "bin/busybox", tree / "bin/busybox-suid")
    (tree / "bin/busybox-suid").chmod(0o6755)
    store = ImageStore(host.images.root)
    name = f"suid-{os.getpid()}"
    store.add(name, f"rootfs:{tree}")
    yield name
    store.remove(name)


@pytest.mark.parametrize("security", [{}, WRITABLE], ids=["read-only", "writable"])
def test_a_setuid_program_gives_nothing(run: Run, suid_image: str, security: dict[str, Any]) -> None:
    script = "cd /bin; [ -u busybox-suid ] && echo suid; "
    script += "for a in 'id -u' 'id -g' 'grep CapEff /proc/self/status'; do ./busybox-suid $a; done"
    outcome = run("sh", "-c", script, image=suid_image, security=security)
    mark, uid, gid, capabilities = outcome.stdout.text.splitlines()
    assert (mark, uid, gid) == ("suid", "65534", "65534")
    assert capabilities.split() == ["CapEff:", "0" * 16]


# ---- the worker ----


def test_localhost_and_the_sandboxs_own_name_resolve(python: Run) -> None:
    outcome = python("""
import asyncio, socket
print(socket.gethostbyname("localhost"), socket.gethostbyname(socket.gethostname()), socket.getfqdn("127.0.0.1"))

async def echo(reader, writer):
    writer.write(await reader.readline())
    writer.close()

async def talk():
    server = await asyncio.start_server(echo, "localhost", 0)
    addresses = {each.getsockname()[0] for each in server.sockets}
    for address in sorted(addresses):
        port = next(each for each in server.sockets if each.getsockname()[0] == address).getsockname()[1]
        reader, writer = await asyncio.open_connection(address, port)
        writer.write(b"hello\\n")
        print(address, (await reader.readline()).decode().strip())

asyncio.run(talk())
""")
    assert outcome.code is ErrorCode.OK, outcome.stderr.text
    first, *heard = outcome.stdout.text.splitlines()
    assert first == "127.0.0.1 127.0.0.1 localhost"
    assert "127.0.0.1 hello" in heard


def test_labels_never_become_annotations(runner: RunscRunner, run: Run) -> None:
    labels = {
        "dev.gvisor.flag.host-uds": "all",
        "dev.gvisor.flag.network": "host",
        "dev.gvisor.spec.rootfs.source": "/etc/passwd",
        "io.kubernetes.cri.container-type": "container",
        "io.kubernetes.cri.sandbox-id": "other",
    }
    texts: list[str] = []

    def look() -> None:
        deadline = time.monotonic() + 15
        while not texts and time.monotonic() < deadline:
            for path in runner._owner.folder.glob("*/config.json"):
                with contextlib.suppress(OSError, ValueError):
                    json.loads(text := path.read_text())
                    texts.append(text)
            time.sleep(0.01)

    looker = threading.Thread(target=look)
    looker.start()
    outcome = run("sh", "-c", "sleep 0.5; echo whole", labels=labels)
    looker.join()
    assert (outcome.code, outcome.stdout.text) == (ErrorCode.OK, "whole\n")
    annotations = json.loads(texts[0])["annotations"]
    assert set(annotations) == {f"dev.gvisor.spec.rootfs.{name}" for name in ("source", "type")}
    assert annotations["dev.gvisor.spec.rootfs.source"] == str(runner.images.resolve("busybox").erofs_path)
    assert "kubernetes" not in texts[0]


EXHAUST = """
import os, time
held = [os.open("/etc/passwd", os.O_RDONLY) for _ in range({odd})]
try:
    while True: held.append(os.pipe())
except OSError as error:
    print(error.errno, len(held), flush=True)
time.sleep(0.5)
"""


@pytest.mark.parametrize("odd", [0, 1])
def test_a_job_without_descriptors_left_does_not_kill_its_sandbox(python: Run, odd: int) -> None:
    """runsc 20240729 panics if the limit is the size of its table and the last pipe takes the last entry."""
    outcome = python(EXHAUST.format(odd=odd))
    assert (outcome.code, outcome.stdout.text[:3]) == (ErrorCode.OK, "24 "), outcome.message


def test_a_job_takes_no_descriptor_of_the_worker(python: Run, run: Run) -> None:
    run("true")
    process = psutil.Process()
    before = process.num_fds()
    peaks: list[int] = []
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(0.02):
            peaks.append(process.num_fds())

    watcher = threading.Thread(target=watch)
    watcher.start()
    outcome = python(EXHAUST.format(odd=0))
    is_over.set()
    watcher.join()
    assert outcome.stdout.text.startswith("24 "), outcome.message
    assert max(peaks) - before < 25
    assert process.num_fds() == before
    assert run("true").code is ErrorCode.OK


def test_nothing_of_the_worker_grows_with_its_jobs(run: Run) -> None:
    run("true")
    process = psutil.Process()
    before = (process.num_fds(), process.num_threads(), len(process.children(recursive=True)))
    for script in ("exit 1", "kill -9 $$", "cat /dev/zero | head -c 200000", "no-such-program"):
        run("sh", "-c", script)
    assert (process.num_fds(), process.num_threads(), len(process.children(recursive=True))) == before


def test_a_crash_leaves_no_core(runner: RunscRunner, attack: Attack) -> None:
    pattern = Path("/proc/sys/kernel/core_pattern").read_text()
    outcome = attack("""
import resource, subprocess
os.chdir("/tmp")
tell("limit", resource.getrlimit(resource.RLIMIT_CORE))
try: resource.setrlimit(resource.RLIMIT_CORE, (1 << 20, 1 << 20))
except ValueError: tell("raise", "refused")
child = os.fork()
if not child: os.abort()
status = os.waitpid(child, 0)[1]
tell("child", (os.WTERMSIG(status), os.WCOREDUMP(status), os.listdir("/tmp")))
os.abort()
""")
    assert (outcome.code, outcome.signal) == (ErrorCode.SIGNALED, signal.SIGABRT)
    told = answers(outcome)
    assert (told["limit"], told["raise"]) == ("(0, 0)", "refused")
    assert told["child"] == "(6, False, [])"
    places = {Path.cwd(), Path("/"), runner.config.runsc.root_dir}
    assert not [path for place in places for path in place.glob("*core.*") if path.stat().st_mtime > time.time() - 60]
    assert Path("/proc/sys/kernel/core_pattern").read_text() == pattern


def test_the_hosts_own_processes_of_a_sandbox_hold_no_secret(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    """Should a program ever break out into its sentry, there must be no environment of the worker around."""
    monkeypatch.setenv("SANDFLEET_TEST_SECRET", SECRET)
    seen: dict[str, bytes] = {}
    is_over = threading.Event()

    def look() -> None:
        while not is_over.wait(0.02):
            for child in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error, OSError):
                    if words := child.cmdline():
                        seen[Path(words[0]).name] = Path(f"/proc/{child.pid}/environ").read_bytes()

    looker = threading.Thread(target=look)
    looker.start()
    run("sleep", "0.5")
    is_over.set()
    looker.join()
    assert {"runsc", "runsc-sandbox"} <= set(seen)
    assert not [name for name, environment in seen.items() if SECRET.encode() in environment]
