from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import resource
import shutil
import signal
import struct
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sandfleet_worker.sandbox import initproto
from sandfleet_worker.sandbox.initproto import (
    ChdirFailed,
    ExecFailed,
    Exited,
    Fault,
    InitJob,
    MountFailed,
    ProtocolFault,
    Ready,
    Report,
    Rlimit,
    RlimitFailed,
    Signaled,
    Started,
    StatusParser,
    UserFailed,
    WritablePath,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    NewSandbox = Callable[[], "Sandbox"]

HERE = Path(__file__).parent
NATIVE = Path(initproto.__file__).parent / "native"
CFLAGS = [
    *("-Os", "-static", "-nostdlib", "-ffreestanding", "-fno-stack-protector", "-fno-pie", "-no-pie"),
    *("-fno-asynchronous-unwind-tables", "-Wl,-z,noexecstack", "-Wl,--build-id=none"),
]
NOBODY = 65534
MIB = 1 << 20
PATH = "/bin:/usr/bin"
DISK = (WritablePath("/tmp", 0o1777), WritablePath("/dev/shm", 0o1777), WritablePath("/home/job", 0o700))
CAPABILITIES = [
    "CAP_KILL",  # signal the job's processes; the only one kept while the job runs
    "CAP_SETUID",
    "CAP_SETGID",
    "CAP_SYS_ADMIN",  # mount, sethostname
    "CAP_SYS_CHROOT",
    "CAP_CHOWN",  # the writable folders, and the pipes
    "CAP_DAC_READ_SEARCH",  # a writable folder below one of another user, closed to others
]


def require(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            if os.environ.get("CI"):
                pytest.fail(f"{program} is not installed")
            pytest.skip(f"{program} is not installed")


def compile_c(source: Path, binary: Path, *flags: str) -> Path:
    subprocess.run(["cc", *flags, "-Wall", "-Wextra", "-Werror", "-o", str(binary), str(source)], check=True)
    return binary


@pytest.fixture(scope="module")
def init(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require("runsc", "mkfs.erofs", "busybox", "cc")
    return compile_c(NATIVE / "init.c", tmp_path_factory.mktemp("init") / "init", *CFLAGS)


@pytest.fixture(scope="module")
def image(init: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("image")
    root = folder / "root"
    for name in ("bin", "dev/shm", "proc", "sys", "tmp", "home/job", "etc", "locked/inside"):
        (root / name).mkdir(parents=True)
    shutil.copy(shutil.which("busybox") or "", root / "bin/busybox")
    for applet in ("sh", "dd", "id", "ls", "mount", "sleep", "touch", "chmod", "stat", "hostname", "true"):
        (root / "bin" / applet).symlink_to("busybox")
    compile_c(HERE / "attacks.c", root / "bin/attacks", "-O1", "-static")
    (root / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n")
    (root / "bin/no-interpreter").write_text("#!/nowhere/sh\n")
    (root / "bin/no-interpreter").chmod(0o755)
    (root / "bin/garbage").write_bytes(b"\x00\x01garbage")
    (root / "bin/garbage").chmod(0o755)
    (root / "bin/plain").write_text("no execute bit\n")
    (root / "locked").chmod(0o700)
    (root / "private/work").mkdir(parents=True)
    os.chown(root / "private", 1000, 1000)
    (root / "private").chmod(0o700)
    subprocess.run(["mkfs.erofs", "-E", "noinline_data", "--quiet", str(folder / "i.erofs"), str(root)], check=True)
    return folder / "i.erofs"


class Sandbox:
    """One attached runsc with our init in it, up to `Ready`."""

    def __init__(self, folder: Path, image: Path, init: Path, capabilities: Sequence[str] = CAPABILITIES) -> None:
        self.folder = folder
        (folder / "rootfs").mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(bundle(folder, image, capabilities)))
        self.output: dict[str, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
        self._parser = StatusParser()
        self._reports: list[Report] = []
        control_read, self.control = os.pipe()
        self.status, status_write = os.pipe()
        init_fd = os.open(init, os.O_RDONLY)
        # runsc puts passed descriptors on low numbers of the guest: ours must not be among them.
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 220) for fd in (control_read, status_write, init_fd)]
        command = [
            "runsc",
            f"--root={folder / 'state'}",
            "--network=none",
            "--ignore-cgroups",
            "--platform=systrap",
            f"--log={folder / 'runsc.log'}",
            "--log-format=json",
            "run",
            f"--bundle={folder}",
            f"--pass-fd={high[0]}:3",
            f"--pass-fd={high[1]}:4",
            f"--exec-fd={high[2]}",
            f"test-{folder.name}",
        ]
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, pass_fds=high
        )
        for fd in (control_read, status_write, init_fd, *high):
            os.close(fd)
        self._readers = [
            threading.Thread(target=self._drain, args=(name,), daemon=True) for name in ("stdout", "stderr")
        ]
        for reader in self._readers:
            reader.start()

    def _drain(self, name: str) -> None:
        stream = getattr(self.process, name)
        while data := os.read(stream.fileno(), 65536):
            self.output[name] += data

    def send(self, data: bytes) -> None:
        while data:
            data = data[os.write(self.control, data) :]

    def next_report(self) -> Report | None:
        """The next line of init; None at the end of file."""
        while not self._reports:
            data = os.read(self.status, 4096)
            if not data:
                return None
            self._reports = self._parser.feed(data)
        return self._reports.pop(0)

    def start(self, job: InitJob) -> Report | None:
        assert self.next_report() == Ready(), (self.folder / "runsc.log").read_text()
        self.send(initproto.encode_job(job))
        return self.next_report()

    def finish(self) -> Report | None:
        """The last report, once everything of the sandbox is gone and its output is complete."""
        last = self.next_report()
        if last is not None:
            assert self.next_report() is None
        self.process.wait(timeout=20)
        for reader in self._readers:
            reader.join(timeout=20)
            assert not reader.is_alive()
        return last

    def run(self, job: InitJob) -> Report | None:
        started = self.start(job)
        if started != Started():
            assert self.next_report() is None
            return started
        return self.finish()

    @property
    def stdout(self) -> str:
        return self.output["stdout"].decode()

    @property
    def stderr(self) -> str:
        return self.output["stderr"].decode()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self.control)
        self.process.kill()
        self.process.wait()
        for reader in self._readers:
            reader.join()
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()
        os.close(self.status)
        shutil.rmtree(self.folder)


def bundle(folder: Path, image: Path, capabilities: Sequence[str]) -> dict[str, Any]:
    return {
        "ociVersion": "1.0.2",
        "root": {"path": str(folder / "rootfs"), "readonly": True},
        "annotations": {
            "dev.gvisor.spec.rootfs.source": str(image),
            "dev.gvisor.spec.rootfs.type": "erofs",
            "dev.gvisor.spec.rootfs.overlay": "memory",
        },
        "hostname": "sandbox",
        "process": {
            "args": ["init"],
            "env": [],
            "cwd": "/",
            "user": {"uid": 0, "gid": 0},
            "terminal": False,
            "noNewPrivileges": True,
            # No bounding set: an execve could never give back what is dropped.
            "capabilities": {"bounding": [], "effective": list(capabilities), "permitted": list(capabilities)},
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
        ],
        "linux": {"namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "network")]},
    }


@pytest.fixture
def new_sandbox(tmp_path: Path, image: Path, init: Path) -> Iterator[NewSandbox]:
    with contextlib.ExitStack() as stack:

        def start() -> Sandbox:
            sandbox = Sandbox(tmp_path / f"s{time.monotonic_ns()}", image, init)
            stack.callback(sandbox.close)
            return sandbox

        yield start


@pytest.fixture
def sandbox(new_sandbox: NewSandbox) -> Sandbox:
    return new_sandbox()


def job(*argv: str, **fields: Any) -> InitJob:
    known: dict[str, Any] = {
        "candidates": initproto.exec_candidates(argv[0], PATH),
        "envp": [f"PATH={PATH}"],
        "uid": NOBODY,
        "gid": NOBODY,
        "disk_bytes": 8 * MIB,
        "writable_paths": DISK,
    }
    return InitJob(argv=argv, **(known | fields))


def shell(script: str, **fields: Any) -> InitJob:
    return job("sh", "-c", script, **fields)


def limit(resource_number: int, value: int) -> Rlimit:
    return Rlimit(resource_number, value, value)


# ---- how a job ends ----


@pytest.mark.parametrize("code", [0, 1, 2, 124, 125, 126, 127, 128, 137, 255])
def test_every_exit_code_is_the_programs_own(new_sandbox: NewSandbox, code: int) -> None:
    sandbox = new_sandbox()
    assert sandbox.run(shell(f"echo out; echo err >&2; exit {code}")) == Exited(code, disk_full=False)
    assert (sandbox.stdout, sandbox.stderr) == ("out\n", "err\n")
    assert sandbox.process.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM, signal.SIGABRT])
def test_a_signal_is_no_exit_code(new_sandbox: NewSandbox, number: signal.Signals) -> None:
    assert new_sandbox().run(shell(f"kill -{int(number)} $$")) == Signaled(number, disk_full=False)


@pytest.mark.parametrize(
    ("command", "report"),
    [
        ("nowhere", ExecFailed(errno.ENOENT, path_exists=False)),
        ("/bin/nowhere", ExecFailed(errno.ENOENT, path_exists=False)),
        ("no-interpreter", ExecFailed(errno.ENOENT, path_exists=True)),
        ("plain", ExecFailed(errno.EACCES, path_exists=True)),
        ("/bin", ExecFailed(errno.EACCES, path_exists=True)),
        ("garbage", ExecFailed(errno.ENOEXEC, path_exists=True)),
        ("/locked/inside", ExecFailed(errno.EACCES, path_exists=False)),
    ],
)
def test_a_program_that_cannot_run_says_why(new_sandbox: NewSandbox, command: str, report: Report) -> None:
    assert new_sandbox().run(job(command)) == report


def test_a_closed_path_folder_does_not_hide_a_later_candidate(sandbox: Sandbox) -> None:
    candidates = ["/locked/true", "/usr/bin/true", "/bin/true"]
    assert sandbox.run(job("true", candidates=candidates)) == Exited(0, disk_full=False)


@pytest.mark.parametrize(
    ("fields", "report"),
    [
        ({"cwd": "/nowhere"}, ChdirFailed(errno.ENOENT)),
        ({"cwd": "/bin/true"}, ChdirFailed(errno.ENOTDIR)),
        ({"cwd": "/locked"}, ChdirFailed(errno.EACCES)),
        ({"writable_paths": (*DISK, WritablePath("/nowhere"))}, MountFailed(errno.ENOENT, 3)),
        ({"writable_paths": (WritablePath("/bin/true"),)}, MountFailed(errno.ENOTDIR, 0)),
        ({"rlimits": [limit(resource.RLIMIT_NOFILE, 1 << 40)]}, RlimitFailed(errno.EPERM, resource.RLIMIT_NOFILE)),
        ({"rlimits": [limit(99, 1)]}, RlimitFailed(errno.EINVAL, 99)),
    ],
)
def test_a_failed_set_up_says_which(new_sandbox: NewSandbox, fields: dict[str, Any], report: Report) -> None:
    assert new_sandbox().run(job("true", **fields)) == report


def test_a_uid_that_means_unchanged_is_refused(sandbox: Sandbox) -> None:
    assert sandbox.next_report() == Ready()
    message = bytearray(initproto.encode_job(job("true")))
    message[12:16] = b"\xff" * 4
    sandbox.send(bytes(message))
    assert sandbox.finish() == UserFailed(errno.EINVAL)


@pytest.mark.parametrize(
    ("message", "fault"),
    [
        (struct.pack("<I", 1 << 21), Fault.LENGTH),
        (struct.pack("<I4s", 4, b"abcd"), Fault.LAYOUT),
        (struct.pack("<I4s", 4, b"SFJ1"), Fault.LAYOUT),
    ],
)
def test_a_bad_message_is_a_protocol_fault(new_sandbox: NewSandbox, message: bytes, fault: Fault) -> None:
    sandbox = new_sandbox()
    assert sandbox.next_report() == Ready()
    sandbox.send(message)
    assert sandbox.finish() == ProtocolFault(fault)


@pytest.mark.parametrize("size", [-1, 1])
def test_a_message_cut_short_or_too_long_is_a_protocol_fault(new_sandbox: NewSandbox, size: int) -> None:
    sandbox = new_sandbox()
    assert sandbox.next_report() == Ready()
    body = initproto.encode_job(job("true"))[4:]
    body = body[:size] if size < 0 else body + b"\0" * size
    sandbox.send(struct.pack("<I", len(body)) + body)
    assert sandbox.finish() == ProtocolFault(Fault.LAYOUT)


def test_a_sandbox_nobody_used_ends_silently(sandbox: Sandbox) -> None:
    assert sandbox.next_report() == Ready()
    close_control(sandbox)
    assert sandbox.finish() is None


# ---- what the job finds ----


def test_the_job_gets_its_own_user_folder_environment_and_limits(sandbox: Sandbox) -> None:
    script = "id; pwd; umask; hostname; echo $COLOUR; ulimit -n; grep -E '^(Cap|Groups)' /proc/self/status"
    described = shell(
        script.replace("grep", "busybox grep"),
        uid=1000,
        gid=1001,
        groups=[5, 6],
        cwd="/tmp",
        umask=0o077,
        hostname="box-7",
        envp=[f"PATH={PATH}", "COLOUR=red"],
        rlimits=[limit(resource.RLIMIT_NOFILE, 64), limit(resource.RLIMIT_CORE, 0)],
    )
    assert sandbox.run(described) == Exited(0, disk_full=False), sandbox.stderr
    lines = sandbox.stdout.splitlines()
    assert lines[:6] == ["uid=1000 gid=1001 groups=5,6", "/tmp", "0077", "box-7", "red", "64"]
    assert lines[6].split() == ["Groups:", "5", "6"]
    assert {line.split()[1] for line in lines[7:]} == {"0" * 16}
    assert len(lines) == 11


def test_root_has_no_capabilities_either(sandbox: Sandbox) -> None:
    script = (
        "busybox grep ^Cap /proc/self/status; mount -t tmpfs t /tmp && exit 9; busybox chown 5 /tmp && exit 8; id -u"
    )
    assert sandbox.run(shell(script, uid=0, gid=0)) == Exited(0, disk_full=False)
    assert {line.split()[1] for line in sandbox.stdout.splitlines()[:4]} == {"0" * 16}
    assert sandbox.stdout.endswith("\n0\n")


def test_signals_descriptors_and_session_are_fresh(sandbox: Sandbox) -> None:
    assert sandbox.run(job("attacks", "show-start")) == Exited(0, disk_full=False)
    assert sandbox.stdout == "ignored 0 blocked 0 descriptors 3 leader 1 nnp 1\n"


def test_a_file_size_limit_holds(sandbox: Sandbox) -> None:
    script = "trap '' XFSZ; dd if=/dev/zero of=/tmp/f bs=4k count=10"
    assert sandbox.run(shell(script, rlimits=[limit(resource.RLIMIT_FSIZE, 8192)])) == Exited(1, disk_full=False)
    assert "File too large" in sandbox.stderr


@pytest.mark.parametrize(("uid", "most"), [(NOBODY, 50), (0, 49)])
def test_the_process_limit_holds(new_sandbox: NewSandbox, uid: int, most: int) -> None:
    # gVisor does not count the process that changed its uid, but counts init's start as root's.
    sandbox = new_sandbox()
    limits = [limit(resource.RLIMIT_NPROC, 50)]
    assert sandbox.run(job("attacks", "count-forks", uid=uid, gid=uid, rlimits=limits)) == Exited(0, disk_full=False)
    assert sandbox.stdout == f"forks {most} errno {errno.EAGAIN}\n"


# ---- the disk ----


def test_writable_paths_belong_to_the_job(sandbox: Sandbox) -> None:
    script = "stat -c '%n %a %u:%g' /tmp /dev/shm /home/job; touch /tmp/a /dev/shm/b /home/job/c && ls /tmp /home/job"
    assert sandbox.run(shell(script, uid=1000, gid=1001)) == Exited(0, disk_full=False)
    assert sandbox.stdout.splitlines() == [
        *("/tmp 1777 1000:1001", "/dev/shm 1777 1000:1001", "/home/job 700 1000:1001"),
        *("/home/job:", "c", "", "/tmp:", "a"),
    ]


def test_a_writable_path_may_lie_in_a_closed_folder(sandbox: Sandbox) -> None:
    paths = [*DISK, WritablePath("/private/work")]
    assert sandbox.run(shell("touch /private/work/f", uid=1000, gid=1000, writable_paths=paths)) == Exited(
        0, disk_full=False
    )


@pytest.mark.parametrize("folder", ["/tmp", "/dev/shm", "/home/job"])
def test_a_full_disk_is_told(new_sandbox: NewSandbox, folder: str) -> None:
    sandbox = new_sandbox()
    script = f"dd if=/dev/zero of={folder}/f bs=64k count=1000; exit 1"
    assert sandbox.run(shell(script)) == Exited(1, disk_full=True)
    assert "128+0 records out" in sandbox.stderr


def test_the_disk_limit_is_the_sum_of_all_writable_paths(sandbox: Sandbox) -> None:
    script = "dd if=/dev/zero of=/tmp/f bs=1M count=5 && dd if=/dev/zero of=/home/job/f bs=1M count=5; kill -9 $$"
    assert sandbox.run(shell(script)) == Signaled(signal.SIGKILL, disk_full=True)
    assert "5+0 records out" in sandbox.stderr
    assert "3+0 records out" in sandbox.stderr


def test_a_disk_that_is_not_full_is_not(sandbox: Sandbox) -> None:
    assert sandbox.run(shell("dd if=/dev/zero of=/tmp/f bs=1M count=7; exit 1")) == Exited(1, disk_full=False)


@pytest.mark.parametrize("uid", [NOBODY, 0])
def test_nothing_else_is_writable(new_sandbox: NewSandbox, uid: int) -> None:
    sandbox = new_sandbox()
    script = (
        "touch /f /dev/f /proc/f /sys/f /home/f /dev/pts/f; cd /proc/1/fd/6 && touch f; busybox find / -xdev -name f"
    )
    sandbox.run(shell(script, uid=uid, gid=uid))
    assert sandbox.stdout == ""
    assert sandbox.stderr.count("touch: ") == 6


# ---- attacks ----


@pytest.mark.parametrize("uid", [NOBODY, 0])
def test_init_cannot_be_killed(new_sandbox: NewSandbox, uid: int) -> None:
    sandbox = new_sandbox()
    script = "kill -9 1 || echo refused; kill -TERM 1 || echo refused; kill -STOP 1 || echo refused; kill -9 -1; exit 9"
    assert sandbox.run(shell(script, uid=uid, gid=uid)) == Exited(9, disk_full=False)
    assert sandbox.stdout == "refused\n" * 3


@pytest.mark.parametrize("uid", [NOBODY, 0])
def test_the_report_cannot_be_forged(new_sandbox: NewSandbox, uid: int) -> None:
    sandbox = new_sandbox()
    script = "chmod 666 /proc/1/fd/*; for fd in 3 4; do echo 'E 0 0' >/proc/1/fd/$fd && echo forged; done; exit 9"
    assert sandbox.run(shell(script, uid=uid, gid=uid)) == Exited(9, disk_full=False)
    assert sandbox.stdout == ""


@pytest.mark.parametrize("uid", [NOBODY, 0])
def test_init_cannot_be_traced(new_sandbox: NewSandbox, uid: int) -> None:
    sandbox = new_sandbox()
    assert sandbox.run(job("attacks", "trace-init", uid=uid, gid=uid)) == Exited(0, disk_full=False)
    answers = dict(zip(*[iter(sandbox.stdout.split())] * 2, strict=True))
    assert set(answers) == {"seize", "attach", "mem", "fd", "pidfd", "kill"}
    assert set(answers.values()) <= {str(errno.EPERM), str(errno.EACCES), str(errno.ENOSYS)}


def test_init_never_shares_its_uid(sandbox: Sandbox) -> None:
    ours = 0x7FFFFFFE
    assert sandbox.run(shell("kill -9 1 || id -u", uid=ours)) == Exited(0, disk_full=False)
    assert sandbox.stdout == f"{ours}\n"


@pytest.mark.parametrize("uid", [NOBODY, 0])
def test_a_user_namespace_lifts_no_limit(new_sandbox: NewSandbox, uid: int) -> None:
    sandbox = new_sandbox()
    limits = [limit(resource.RLIMIT_NPROC, 20)]
    sandbox.run(job("attacks", "make-namespaces", uid=uid, gid=uid, rlimits=limits))
    assert sandbox.stdout.startswith("clone 1 unshare 1 mount 1 forks ")
    assert int(sandbox.stdout.split()[7]) <= 20


def test_the_namespace_attack_is_a_real_one(sandbox: Sandbox) -> None:
    """Should a later gVisor fail this, the chroot in init may go."""
    limits = [limit(resource.RLIMIT_NPROC, 20)]
    attack = job("attacks", "make-namespaces", rlimits=limits, allow_user_namespaces=True)
    assert sandbox.start(attack) == Started()
    deadline = time.monotonic() + 20
    while "mount" not in sandbox.stdout and time.monotonic() < deadline:
        time.sleep(0.02)
    assert sandbox.stdout == "clone 0 unshare 0 mount 0 "
    sandbox.send(initproto.KILL)
    assert sandbox.finish() == Signaled(signal.SIGKILL, disk_full=False)


@pytest.mark.parametrize(("attack", "code"), [("leave-daemons", 5), ("leave-stopped-children", 6)])
def test_children_left_behind_do_not_delay_the_end(new_sandbox: NewSandbox, attack: str, code: int) -> None:
    sandbox = new_sandbox()
    assert sandbox.run(job("attacks", attack)) == Exited(code, disk_full=False)


def test_closed_output_does_not_confuse_anyone(sandbox: Sandbox) -> None:
    assert sandbox.run(shell("exec <&- >&- 2>&-; sleep 0.2; exit 4")) == Exited(4, disk_full=False)


@pytest.mark.parametrize("command", [initproto.TERMINATE, initproto.KILL])
def test_a_fork_bomb_is_stopped(new_sandbox: NewSandbox, command: bytes) -> None:
    sandbox = new_sandbox()
    assert sandbox.start(job("attacks", "bomb", rlimits=[limit(resource.RLIMIT_NPROC, 100)])) == Started()
    time.sleep(1)
    sandbox.send(command)
    number = signal.SIGTERM if command == initproto.TERMINATE else signal.SIGKILL
    assert sandbox.finish() == Signaled(number, disk_full=False)


# ---- control ----


@pytest.mark.parametrize(
    ("script", "command", "report"),
    [
        ("echo up; sleep 60", initproto.TERMINATE, Signaled(signal.SIGTERM, disk_full=False)),
        ("trap 'exit 7' TERM; echo up; sleep 60", initproto.TERMINATE, Exited(7, disk_full=False)),
        ("echo up; kill -STOP $$", initproto.TERMINATE, Signaled(signal.SIGTERM, disk_full=False)),
        ("trap '' TERM; echo up; sleep 60", initproto.KILL, Signaled(signal.SIGKILL, disk_full=False)),
        ("echo up; kill -STOP $$", initproto.KILL, Signaled(signal.SIGKILL, disk_full=False)),
        ("echo up; sleep 0.3; exit 3", b"?", Exited(3, disk_full=False)),
    ],
)
def test_control_bytes_reach_every_process(
    new_sandbox: NewSandbox, script: str, command: bytes, report: Report
) -> None:
    sandbox = new_sandbox()
    assert sandbox.start(shell(script)) == Started()
    wait_for_output(sandbox, "up\n")
    sandbox.send(command)
    assert sandbox.finish() == report


def test_the_end_of_the_worker_ends_everything(sandbox: Sandbox) -> None:
    assert sandbox.start(shell("trap '' TERM HUP; echo up; sleep 60")) == Started()
    wait_for_output(sandbox, "up\n")
    close_control(sandbox)
    assert sandbox.finish() is None


def wait_for_output(sandbox: Sandbox, text: str) -> None:
    deadline = time.monotonic() + 20
    while sandbox.stdout != text:
        assert time.monotonic() < deadline, f"no {text!r} in {sandbox.stdout!r}"
        time.sleep(0.01)


def close_control(sandbox: Sandbox) -> None:
    os.close(sandbox.control)
    sandbox.control = os.open(os.devnull, os.O_WRONLY)
