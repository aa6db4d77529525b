"""Several hosts in one machine: network namespaces on a bridge, and a Redis at its address."""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import redis
from cgrouptree import CGROUP_PARENT, find_cgroups, remove_parents
from stage import PROGRAM, Stage, Worker
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType
    from typing import Self

NETWORK = "10.77.0"
BRIDGE, BRIDGE_ADDRESS = "lan", "02:00:0a:4d:00:01"
START_SECONDS = 10.0


def ip(*args: str) -> None:
    """Run ip(8)."""
    done = subprocess.run(["ip", *args], capture_output=True, text=True, check=False)
    if done.returncode:
        msg = f"ip {' '.join(args)}: {done.stderr.strip()}"
        raise RuntimeError(msg)


def inside(namespace: str, *command: str) -> list[str]:
    """Return the command line that runs `command` in a network namespace, as the same process.

    Not by `ip netns exec`: that mounts a /sys of its own, which has no cgroups.
    """
    return ["nsenter", f"--net=/run/netns/{namespace}", *command]


@dataclass
class LanHost(Stage):
    """One host: its hostname, address, folders and cgroups; only the store of images is shared."""

    name: str = ""
    namespace: str = ""
    hub: str = ""

    @property
    def cgroup_parent(self) -> str:
        return f"{CGROUP_PARENT}-{self.name}"

    @property
    def env(self) -> dict[str, str]:
        return super().env | {"SANDFLEET_RUNSC__CGROUP_PARENT": self.cgroup_parent}

    def start(self, concurrency: int = 2, program: Sequence[str] = PROGRAM, **settings: str) -> Worker:
        log_path = self.folder / f"worker-{len(self.workers)}.log"
        worker = [sys.executable, *program, "--concurrency", str(concurrency)]
        named = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', self.name, *worker]
        command, env = inside(self.namespace, *named), self.env | settings
        with log_path.open("wb") as log:
            process = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
        self.workers.append(Worker(process, log_path))
        return self.workers[-1]

    def cut_off(self) -> None:
        """Cut the link: no side gets an end of its connections."""
        ip("-n", self.hub, "link", "set", f"to-{self.name}", "down")

    def join(self) -> None:
        """Restore the link."""
        ip("-n", self.hub, "link", "set", f"to-{self.name}", "up")

    @contextlib.contextmanager
    def black_hole(self) -> Iterator[None]:
        """Drop every packet, as a router would: the link is up, so no failed ARP hastens TCP."""
        gateway = (f"{NETWORK}.1", "lladdr", BRIDGE_ADDRESS, "dev", "eth0")
        ip("-n", self.namespace, "neighbour", "replace", *gateway, "nud", "permanent")
        ip("-n", self.hub, "link", "set", f"to-{self.name}", "nomaster")
        try:
            yield
        finally:
            ip("-n", self.hub, "link", "set", f"to-{self.name}", "master", BRIDGE)

    def find_leftovers(self) -> list[str]:
        return super().find_leftovers() + find_cgroups(self.cgroup_parent)

    def close(self) -> None:
        super().close()
        remove_parents(self.cgroup_parent)


@dataclass
class Lan:
    """A bridge in its own namespace, a Redis on it, and hosts; all of it always goes at the end.

    The test itself talks to Redis by a unix socket: it is on no host.
    """

    folder: Path
    images: Path
    hosts: list[LanHost] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._token = f"sft-{os.getpid()}-{secrets.token_hex(3)}"
        self._password = secrets.token_hex(8)
        self._namespaces: list[str] = []
        self._server: subprocess.Popen[bytes] | None = None
        socket = self.folder / "redis.sock"
        self.redis: Any = redis.Redis(unix_socket_path=str(socket), password=self._password)
        self.url = f"unix://:{self._password}@{socket}?db=0"
        try:
            self._hub = self._new_namespace("hub")
            # An address of its own: else it is one of the ports', and changes when that one goes.
            ip("-n", self._hub, "link", "add", BRIDGE, "address", BRIDGE_ADDRESS, "type", "bridge")
            ip("-n", self._hub, "address", "add", f"{NETWORK}.1/24", "dev", BRIDGE)
            ip("-n", self._hub, "link", "set", BRIDGE, "up")
            self._start_redis(socket)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _new_namespace(self, name: str) -> str:
        namespace = f"{self._token}-{name}"
        ip("netns", "add", namespace)
        self._namespaces.append(namespace)
        ip("-n", namespace, "link", "set", "lo", "up")
        return namespace

    def _start_redis(self, socket: Path) -> None:
        options = ["--bind", f"{NETWORK}.1", "--port", "6379", "--unixsocket", str(socket), "--dir", str(self.folder)]
        options += ["--requirepass", self._password, "--save", "", "--appendonly", "yes"]
        options += ["--maxmemory-policy", "noeviction"]
        with (self.folder / "redis.log").open("wb") as log:
            command = inside(self._hub, "redis-server", *options)
            self._server = subprocess.Popen(command, stdout=log, stderr=log)
        wait_until(self._answers, START_SECONDS, "redis-server answers")

    def _answers(self) -> bool:
        try:
            return bool(self.redis.ping())
        except redis.ConnectionError:
            return False

    def add_host(self, name: str) -> LanHost:
        """Wire a host to the bridge; its workers are not started."""
        namespace = self._new_namespace(name)
        port, number = f"to-{name}", len(self.hosts) + 2
        ip("-n", self._hub, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", namespace)
        ip("-n", self._hub, "link", "set", port, "master", BRIDGE, "up")
        ip("-n", namespace, "address", "add", f"{NETWORK}.{number}/24", "dev", "eth0")
        ip("-n", namespace, "link", "set", "eth0", "up")
        folder = self.folder / name
        folder.mkdir()
        url = f"redis://:{self._password}@{NETWORK}.1:6379/0"
        host = LanHost(folder, self.images, url, self.redis, name=name, namespace=namespace, hub=self._hub)
        self.hosts.append(host)
        return host

    def close(self) -> None:
        try:
            for host in self.hosts:
                host.close()
        finally:
            self.redis.close()
            if self._server is not None:
                self._server.kill()
                self._server.wait()
            for namespace in self._namespaces:
                # Links go with their namespace; it is named here, so nothing of another test's.
                ip("netns", "delete", namespace)
