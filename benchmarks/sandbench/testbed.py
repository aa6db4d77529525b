"""The testbed of a run: its folders, images, root filesystems and redis-servers; ends remove it."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import redis
from sandfleet_config.settings import HostSettings, ImagesSettings, RunscSettings
from sandfleet_worker.sandbox.runner import RunscRunner

from sandbench.any_release import find_name
from sandbench.processes import Process, running, wait_until
from sandbench.programs import IMAGES

if TYPE_CHECKING:
    from collections.abc import Iterator

find_tree = find_name("find_tree", "sandbox.cgroup.tree", "sandbox.cgroup_tree")
ImageStore = find_name("ImageStore", "sandbox.image.store", "sandbox.images")

TMPFS = Path("/dev/shm")  # noqa: S108  for state that belongs on tmpfs; a folder of our own below it
REDIS_START_SECONDS = 10.0


@dataclass(frozen=True)
class Server:
    """A redis-server on a unix socket, as of `sandfleet-worker local`: AOF, nothing evicted."""

    url: str
    client: redis.Redis
    process: Process

    def read(self, section: str) -> dict[str, Any]:
        """Return a section of INFO."""
        info: dict[str, Any] = self.client.info(section)
        return info

    def read_cpu_seconds(self) -> float:
        """Return the CPU of Redis's main thread and its helpers so far."""
        cpu = self.read("cpu")
        return float(cpu["used_cpu_sys"]) + float(cpu["used_cpu_user"])

    def read_calls(self) -> int:
        """Return the number of commands so far, those of scripts included."""
        return sum(int(fact["calls"]) for fact in self.read("commandstats").values())

    def read_network_bytes(self) -> int:
        """Return the bytes that Redis has received and sent so far."""
        stats = self.read("stats")
        return int(stats["total_net_input_bytes"]) + int(stats["total_net_output_bytes"])

    def read_memory_bytes(self) -> int:
        """Return the memory of the data, in bytes."""
        return int(self.read("memory")["used_memory"])


@dataclass
class Testbed:
    """The folders of one run: `disk` holds data, `state` (on tmpfs, if any) the state of jobs."""

    disk: Path
    state: Path
    images: Path
    roots: list[Path] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    @property
    def cgroup_parent(self) -> str:
        """The cgroup that holds every cgroup of this run."""
        return f"sandfleet-bench-{os.getpid()}"

    def new_name(self, kind: str) -> str:
        """Return a name that is unique in this run."""
        return f"{kind}{next(self.numbers)}"

    def new_folder(self, kind: str) -> Path:
        """Make a folder for the state of jobs."""
        folder = self.state / self.new_name(kind)
        folder.mkdir()
        return folder

    def new_root(self) -> Path:
        """Make a state folder for one worker or runner; it is swept at the end."""
        self.roots.append(self.new_folder("root"))
        return self.roots[-1]

    def host_settings(self, root: Path) -> HostSettings:
        """Return the settings of a runner in this process; warm sandboxes are the worker's."""
        runsc = RunscSettings(root_dir=root, cgroup_parent=self.cgroup_parent)
        off = {"warm": {"size": 0}} if "warm" in HostSettings.model_fields else {}
        return HostSettings.model_validate({"runsc": runsc, "images": ImagesSettings(root=self.images), **off})

    def unpack(self, image: str) -> Path:
        """Return a folder with the image's files: what one who writes `runsc run` by hand has."""
        folder = self.disk / "rootfs" / image
        if not folder.exists():
            folder.parent.mkdir(exist_ok=True)
            packed = ImageStore(self.images).resolve(image).erofs_path
            command = ["fsck.erofs", f"--extract={folder}", str(packed)]
            subprocess.run(command, check=True, capture_output=True)
        return folder

    @contextlib.contextmanager
    def serve_redis(self, name: str) -> Iterator[Server]:
        """Run a redis-server in a folder of its own."""
        folder = self.disk / name
        folder.mkdir()
        socket = folder / "redis.sock"
        options = ["--port", "0", "--unixsocket", str(socket), "--dir", str(folder), "--save", ""]
        options += ["--appendonly", "yes", "--maxmemory-policy", "noeviction", "--loglevel", "warning"]
        with running(["redis-server", *options], self.disk / f"{name}.log") as process:
            wait_until(socket.exists, REDIS_START_SECONDS, "redis-server has its socket")
            with redis.Redis(unix_socket_path=str(socket), protocol=2) as client:
                yield Server(f"unix://{socket}?db=0", client, process)
        shutil.rmtree(folder)

    def sweep(self) -> None:
        """Remove the sandboxes that killed workers left, then the cgroups."""
        for root in self.roots:
            with RunscRunner(self.host_settings(root)) as runner:
                runner.sweep()
        for folder in find_tree(self.cgroup_parent).parents.values():
            # One folder may stand for several controllers; what is in the way is told, not hidden.
            with contextlib.suppress(FileNotFoundError):
                folder.rmdir()


@contextlib.contextmanager
def new_testbed(images: Path | None = None) -> Iterator[Testbed]:
    """Make a testbed; without `images` the starter images are made too, which takes some 15 s."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends everything in order, as Ctrl-C does
    with contextlib.ExitStack() as stack:
        # Short names: sockets live below (unix(7): 107 characters).
        disk = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sfb-")))
        base = TMPFS if os.access(TMPFS, os.W_OK) else None
        state = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sfb-", dir=base)))
        stack.callback(_unmount_below, disk, state)
        testbed = Testbed(disk, state, images or disk / "images")
        for name in IMAGES:
            ImageStore(testbed.images).add(name)
        stack.callback(testbed.sweep)
        yield testbed


def _unmount_below(*folders: Path) -> None:
    """Unmount what bare runsc left in `folders`, so that they can be removed."""
    targets = [Path(line.split()[4]) for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for target in targets:
        if any(target.is_relative_to(folder) for folder in folders):
            subprocess.run(["umount", str(target)], check=True)
