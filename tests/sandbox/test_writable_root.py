"""`security.read_only_rootfs: false`: an overlay in the sandbox, on the limited disk of /tmp."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sandfleet_config.codes import ErrorCode

if TYPE_CHECKING:
    from conftest import Run
    from sandfleet_worker.sandbox.runner import RunscRunner

WRITABLE = {"read_only_rootfs": False}


def test_the_user_nobody_writes_in_folders_that_are_open_to_all(run: Run) -> None:
    script = "echo kept >/var/tmp/x && cat /var/tmp/x; echo no >/etc/x; echo no >/x; rm /etc/passwd; echo $?"
    outcome = run("sh", "-c", script, image="python", security=WRITABLE)
    assert outcome.stdout.text == "kept\n1\n"
    assert outcome.stderr.text.count("Permission denied") == 3


def test_root_by_policy_writes_the_files_of_root(run_as_root: Run) -> None:
    script = """
        echo a >>/etc/passwd && rm /bin/true /usr/bin/env && rm -r /usr/share/doc && mkdir /new
        tail -n 1 /etc/passwd; ls /
    """
    outcome = run_as_root("sh", "-c", script, image="python", security=WRITABLE)
    assert outcome.stdout.text.startswith("a\n")
    assert "new" in outcome.stdout.text.split()
    assert outcome.stderr.text == ""


@pytest.mark.parametrize("image", ["python", "busybox"])
def test_modes_and_owners_are_the_images(run: Run, image: str) -> None:
    script = "stat -c '%n %a %u:%g' / /* /etc/* /var/tmp; id -u"
    seen = [run("sh", "-c", script, image=image, security=security).stdout.text for security in ({}, WRITABLE)]
    assert seen[0] == seen[1]
    assert "/etc" in seen[0]


FILES = """
import mmap, os, shutil, subprocess

ROUNDS = ("cold", "warm")
os.chdir("/var/tmp")
shutil.copy("/bin/true", "program")
assert subprocess.run(["./program"]).returncode == 0
with open("script", "w") as file:
    file.write("#!/bin/sh\\necho ran\\n")
os.chmod("script", 0o700)
assert subprocess.check_output(["./script"]) == b"ran\\n"
with open("mapped", "wb") as file:
    file.write(bytes(8192))
with open("mapped", "r+b") as file, mmap.mmap(file.fileno(), 8192) as memory:
    memory[4096:4099] = b"abc"
with open("mapped", "rb") as file:
    assert file.read()[4096:4099] == b"abc"
os.link("mapped", "twin")
assert os.stat("mapped").st_ino == os.stat("twin").st_ino and os.stat("twin").st_nlink == 2
os.makedirs("a/b"), os.mkdir("c")
os.rename("mapped", "a/b/mapped")
os.rename("a", "c/a")
assert os.listdir("c/a/b") == ["mapped"] and not os.path.exists("a")
os.chmod("twin", 0o400), os.utime("twin", (1, 1)), os.symlink("twin", "link")
assert os.stat("link").st_mtime == 1 and os.stat("link").st_mode & 0o777 == 0o400
shutil.rmtree("c")
os.mkfifo("fifo")
print("done")
"""


def test_files_behave_as_files(python: Run) -> None:
    outcome = python(FILES, security=WRITABLE)
    assert (outcome.code, outcome.stdout.text) == (ErrorCode.OK, "done\n"), outcome.stderr.text


def test_the_disk_is_one_limit_for_root_and_tmp(run: Run) -> None:
    script = "dd if=/dev/zero of=/tmp/x bs=1M count=5 && dd if=/dev/zero of=/var/tmp/x bs=1M count=5"
    outcome = run("sh", "-c", script, image="python", security=WRITABLE, resources={"disk_bytes": "8MiB"})
    assert (outcome.code, outcome.exit_code) == (ErrorCode.DISK_LIMIT, 1)
    assert outcome.limits["disk_bytes"].enforced
    assert "5+0 records out" in outcome.stderr.text
    assert "3+0 records out" in outcome.stderr.text


def test_deleted_files_free_their_space(run: Run) -> None:
    script = "for i in 1 2 3 4; do dd if=/dev/zero of=/var/tmp/x bs=1M count=6 && rm /var/tmp/x || exit 1; done"
    outcome = run("sh", "-c", script, image="python", security=WRITABLE, resources={"disk_bytes": "8MiB"})
    assert outcome.code is ErrorCode.OK, outcome.stderr.text


def test_no_mount_on_the_host_is_needed(runner: RunscRunner, run: Run) -> None:
    before = Path("/proc/self/mounts").read_text()
    assert run("sh", "-c", "echo a >/tmp/x", security=WRITABLE).code is ErrorCode.OK
    assert Path("/proc/self/mounts").read_text() == before
    assert not [path for path in runner.config.runsc.root_dir.rglob("*") if path.name == "overlay"]
