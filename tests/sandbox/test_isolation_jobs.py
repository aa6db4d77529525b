"""Attacks of a program on other jobs and for privileges; all fail. One attack a test."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from attacking import REFUSED, SECRET, WRITABLE, answers
from sandfleet_worker.sandbox.image.store import ImageStore

if TYPE_CHECKING:
    from collections.abc import Iterator

    from attacking import Attack
    from conftest import Run
    from sandfleet_config.outcome import Outcome
    from sandfleet_config.settings import HostSettings
    from sandfleet_worker.sandbox.runner import RunscRunner

ROUNDS = ("cold", "warm", "prepared")

# ---- the next job ----

DIGEST = """
import hashlib
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


@pytest.fixture
def security(host: HostSettings) -> dict[str, Any]:
    """A root that the job can write, where one can be had: a prepared job has none."""
    return {} if host.prepared.start == "python" else WRITABLE


def test_a_job_finds_nothing_of_the_one_before(attack: Attack, security: dict[str, Any]) -> None:
    own = answers(attack(LEAVE + LOOK, security=security))
    assert own["files"] != "[]"
    assert own["shared"] == "memory done"
    assert answers(attack(LOOK, security=security)) == SEES_NOTHING


def test_a_job_sees_nothing_of_the_one_beside_it(attack: Attack, security: dict[str, Any]) -> None:
    outcomes: list[Outcome] = []
    code = LEAVE + "import time; time.sleep(4)\nos.write(1, b'end 1\\n')"
    neighbour = threading.Thread(target=lambda: outcomes.append(attack(code, security=security)))
    neighbour.start()
    # It looks when the other one has long left its traces; that it still ran then is checked below.
    outcome = attack(f"import time; time.sleep(2)\n{LOOK}", security=security)
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
