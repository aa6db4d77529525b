"""A sandbox with only our init in it, for the tests of init; conftest.py offers the fixtures."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest
from sandfleet_config.settings import HostSettings, RunscSettings, WarmSettings
from sandfleet_worker.sandbox.process import init_job
from sandfleet_worker.sandbox.process.bundle import encode_config
from sandfleet_worker.sandbox.process.init_job import InitJob, Rlimit, WritablePath
from sandfleet_worker.sandbox.process.init_reports import Ready, Report, Started, StatusParser
from sandfleet_worker.sandbox.process.runsc import NATIVE
from sandfleet_worker.sandbox.runner import RunscRunner

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandfleet_worker.sandbox.process.runsc import RunscBinary

HERE = Path(__file__).parent
CFLAGS = [
    *("-Os", "-static", "-nostdlib", "-ffreestanding", "-fno-stack-protector", "-fno-pie", "-no-pie"),
    *("-fno-asynchronous-unwind-tables", "-Wl,-z,noexecstack", "-Wl,--build-id=none"),
]
NOBODY = 65534
MIB = 1 << 20
PATH = "/bin:/usr/bin"
DISK = (WritablePath("/tmp", 0o1777), WritablePath("/dev/shm", 0o1777), WritablePath("/home/job", 0o700))


def require(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            if os.environ.get("CI"):
                pytest.fail(f"{program} is not installed")
            pytest.skip(f"{program} is not installed")


def compile_c(source: Path, binary: Path, *flags: str) -> Path:
    subprocess.run(["cc", *flags, "-Wall", "-Wextra", "-Werror", "-o", str(binary), str(source)], check=True)
    return binary


@pytest.fixture(scope="session")
def init(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require("runsc", "mkfs.erofs", "busybox", "cc")
    return compile_c(NATIVE / "init.c", tmp_path_factory.mktemp("init") / "init", *CFLAGS)


@pytest.fixture(scope="session")
def abilities_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a state folder in which it is remembered what the runsc under test can do."""
    return tmp_path_factory.mktemp("abilities")


@pytest.fixture(scope="session")
def runsc(abilities_folder: Path) -> RunscBinary:
    """Return the runsc under test, with what it can do."""
    require("runsc", "mkfs.erofs")
    settings = RunscSettings(root_dir=abilities_folder)
    with RunscRunner(HostSettings(runsc=settings, warm=WarmSettings(size=0))) as runner:
        return runner._find_runsc(settings.platform)


@pytest.fixture(scope="session")
def init_image(init: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
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
    (root / "home/free").mkdir(mode=0o700)
    os.chown(root / "home/free", 1000, 1000)
    (root / "home/shared").mkdir()
    (root / "home/shared").chmod(0o1777)
    os.chown(root, 0, 7)
    root.chmod(0o751)
    subprocess.run(["mkfs.erofs", "-E", "noinline_data", "--quiet", str(folder / "i.erofs"), str(root)], check=True)
    return folder / "i.erofs"


class Sandbox:
    """One attached runsc with our init in it, up to `Ready`."""

    def __init__(self, folder: Path, image: Path, init: Path, runsc: RunscBinary, *, is_prepared: bool = False) -> None:
        self.folder = folder
        (folder / "rootfs").mkdir(parents=True)
        inherits = runsc.abilities.inherits_capabilities
        (folder / "config.json").write_bytes(
            encode_config(str(folder / "rootfs"), str(image), inherits_capabilities=inherits, is_prepared=is_prepared)
        )
        self.output: dict[str, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
        self._parser = StatusParser()
        self._reports: list[Report] = []
        control_read, self.control = os.pipe()
        self.status, status_write = os.pipe()
        init_fd = os.open(init, os.O_RDONLY)
        # runsc puts passed descriptors on low numbers of the guest: ours must not be among them.
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 220) for fd in (control_read, status_write, init_fd)]
        command = [
            runsc.path,
            *(["--directfs=false"] if runsc.abilities.is_directfs_off else []),
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
        self.send(init_job.encode_job(job))
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


class NewSandbox(Protocol):
    def __call__(self, *, is_prepared: bool = False) -> Sandbox: ...


@pytest.fixture
def new_sandbox(tmp_path: Path, init_image: Path, init: Path, runsc: RunscBinary) -> Iterator[NewSandbox]:
    with contextlib.ExitStack() as stack:

        def start(*, is_prepared: bool = False) -> Sandbox:
            folder = tmp_path / f"s{time.monotonic_ns()}"
            sandbox = Sandbox(folder, init_image, init, runsc, is_prepared=is_prepared)
            stack.callback(sandbox.close)
            return sandbox

        yield start


@pytest.fixture
def sandbox(new_sandbox: NewSandbox) -> Sandbox:
    return new_sandbox()


def job(*argv: str, **fields: Any) -> InitJob:
    known: dict[str, Any] = {
        "candidates": init_job.exec_candidates(argv[0], PATH),
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


def wait_for_output(sandbox: Sandbox, text: str) -> None:
    deadline = time.monotonic() + 20
    while sandbox.stdout != text:
        assert time.monotonic() < deadline, f"no {text!r} in {sandbox.stdout!r}"
        time.sleep(0.01)


def close_control(sandbox: Sandbox) -> None:
    os.close(sandbox.control)
    sandbox.control = os.open(os.devnull, os.O_WRONLY)
