"""Real redis-servers on loopback: with a password, an ACL file, TLS; a primary, replicas, sentinels."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import redis
import trustme
from redis.backoff import NoBackoff
from redis.retry import Retry
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Sequence

START_SECONDS = 10.0
MAKE_USERS = Path(__file__).parents[2] / "deploy" / "redis" / "make_users.py"
SERVICE = "fleet"
PASSWORD = "primary-password"
"""Of Redis; replicas use it, too."""
SENTINEL_PASSWORD = "sentinel-password"


def find_ports(count: int) -> list[int]:
    """Return ports that are free now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@dataclass(frozen=True)
class TlsFiles:
    """A CA of the test's own, and what it signed: for servers on loopback, and for a client."""

    ca: Path
    server_cert: Path
    server_key: Path
    client_cert: Path
    client_key: Path

    @classmethod
    def make(cls, folder: Path) -> Self:
        """Write all files into `folder`."""
        authority = trustme.CA()
        files = cls(
            *(folder / f"{name}.pem" for name in ("ca", "server-cert", "server-key", "client-cert", "client-key"))
        )
        authority.cert_pem.write_to_path(str(files.ca))
        servers = ("127.0.0.1", "localhost")
        pairs = (
            (servers, files.server_cert, files.server_key),
            (("client.example",), files.client_cert, files.client_key),
        )
        for names, cert, key in pairs:
            issued = authority.issue_cert(*names)
            issued.cert_chain_pems[0].write_to_path(str(cert))
            issued.private_key_pem.write_to_path(str(key))
        return files

    def server_options(self, port: int) -> list[str]:
        """Return options of a server that speaks TLS only, and wants a client's certificate."""
        names = ("--tls-ca-cert-file", "--tls-cert-file", "--tls-key-file")
        values = (self.ca, self.server_cert, self.server_key)
        return [
            "--port",
            "0",
            "--tls-port",
            str(port),
            *(str(word) for pair in zip(names, values, strict=True) for word in pair),
        ]


@dataclass
class Server:
    """One redis-server, or sentinel, on a port of loopback."""

    folder: Path
    port: int
    options: Sequence[str]
    password: str = PASSWORD
    tls: TlsFiles | None = None
    arguments: Sequence[str] = ()
    username: str | None = None
    process: subprocess.Popen[bytes] = field(init=False)

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self.folder.mkdir(exist_ok=True)
        ports = self.tls.server_options(self.port) if self.tls else ["--port", str(self.port)]
        command = [
            "redis-server",
            *self.arguments,
            "--bind",
            "127.0.0.1",
            "--dir",
            str(self.folder),
            *ports,
            *self.options,
        ]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        wait_until(self.answers, START_SECONDS, f"the server on {self.port} answers")

    def connect(self, **options: Any) -> redis.Redis:
        """Return a client that retries nothing; `options` win."""
        known: dict[str, Any] = {"port": self.port, "username": self.username, "password": self.password}
        known |= {"protocol": 2, "socket_timeout": 5}
        if self.tls:
            known |= {"ssl": True, "ssl_ca_certs": str(self.tls.ca), "ssl_certfile": str(self.tls.client_cert)}
            known |= {"ssl_keyfile": str(self.tls.client_key)}
        return redis.Redis(**(known | {"retry": Retry(NoBackoff(), 0)} | options))

    def answers(self) -> bool:
        """Whether it answers a ping."""
        try:
            with self.connect() as client:
                return bool(client.ping())
        except (redis.ConnectionError, redis.TimeoutError):
            return False

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.wait()


class Cluster:
    """One primary, two replicas, three sentinels: each a real server, and all with passwords."""

    def __init__(self, folder: Path, tls: TlsFiles | None = None, down_ms: int = 1000) -> None:
        ports = find_ports(6)
        self.tls = tls
        self.servers = [self._new_server(folder, port) for port in ports[:3]]
        self.sentinels = [self._new_sentinel(folder, port, ports[0], down_ms) for port in ports[3:]]

    def _new_server(self, folder: Path, port: int) -> Server:
        options = ["--requirepass", PASSWORD, "--masterauth", PASSWORD, "--appendonly", "yes", "--save", ""]
        # Without the first a replica waits 5 s for others before it gets the data.
        options += ["--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1"]
        options += ["--tls-replication", "yes"] if self.tls else []
        return Server(folder / f"redis-{port}", port, options, tls=self.tls)

    def _new_sentinel(self, folder: Path, port: int, primary: int, down_ms: int) -> Server:
        config = folder / f"sentinel-{port}.conf"
        config.write_text(
            f"sentinel monitor {SERVICE} 127.0.0.1 {primary} 2\n"
            f"sentinel auth-pass {SERVICE} {PASSWORD}\n"
            f"sentinel down-after-milliseconds {SERVICE} {down_ms}\n"
            f"sentinel failover-timeout {SERVICE} 10000\n"
            f"requirepass {SENTINEL_PASSWORD}\nsentinel sentinel-pass {SENTINEL_PASSWORD}\n"
        )
        options = ["--sentinel", *(["--tls-replication", "yes"] if self.tls else [])]
        return Server(folder / f"sentinel-{port}", port, options, SENTINEL_PASSWORD, self.tls, [str(config)])

    def __enter__(self) -> Self:
        try:
            for server in self.servers:
                server.start()
            host = self.servers[0].port
            for server in self.servers[1:]:
                with server.connect() as client:
                    client.replicaof("127.0.0.1", host)
            wait_until(lambda: self.count_replicas() == len(self.servers) - 1, START_SECONDS, "the replicas follow")
            for sentinel in self.sentinels:
                sentinel.start()
            wait_until(self._is_agreed, START_SECONDS, "the sentinels know each other and the replicas")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for server in [*self.sentinels, *self.servers]:
            if hasattr(server, "process") and server.process.poll() is None:
                server.kill()

    @property
    def url(self) -> str:
        """The setting SANDFLEET_REDIS_URL."""
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        scheme = "sentinels" if self.tls else "sentinel"
        return f"{scheme}://:{PASSWORD}@{hosts}/{SERVICE}/0?sentinel_password={SENTINEL_PASSWORD}"

    def find_primary(self) -> Server:
        """Return the server that the sentinels name."""
        for sentinel in self.sentinels:
            with contextlib.suppress(redis.RedisError), sentinel.connect() as client:
                state: Any = client.sentinel_get_master_addr_by_name(SERVICE)
                return next(server for server in self.servers if server.port == state[1])
        raise AssertionError("no sentinel answers")

    def count_replicas(self) -> int:
        """Return how many replicas the primary has that are up to date."""
        with self.servers[0].connect() as client:
            info: dict[str, Any] = client.info("replication")
        return sum(1 for name, value in info.items() if name.startswith("slave") and value["state"] == "online")

    def _is_agreed(self) -> bool:
        for sentinel in self.sentinels:
            with sentinel.connect() as client:
                state: Any = client.sentinel_master(SERVICE)
            if state["num-other-sentinels"] != len(self.sentinels) - 1 or state["num-slaves"] != len(self.servers) - 1:
                return False
        return True

    def fail_over(self) -> Server:
        """Kill the primary, wait for the next one, and return it."""
        old = self.find_primary()
        old.kill()
        wait_until(lambda: self.find_primary() is not old, 30, "the sentinels have chosen a new primary")
        return self.find_primary()


class UserServer:
    """A redis-server with the users that deploy/redis/make_users.py makes."""

    def __init__(self, folder: Path, *queues: str) -> None:
        self._files = folder / "users"
        words = [word for queue in queues for word in ("--queue", queue)]
        subprocess.run([sys.executable, str(MAKE_USERS), str(self._files), *words], check=True)
        options = ["--aclfile", str(self._files / "users.acl"), "--appendonly", "yes", "--save", ""]
        password = self._read_password("admin")
        self.server = Server(folder / "redis", find_ports(1)[0], options, password, username="admin")

    def __enter__(self) -> Self:
        self.server.start()
        self.admin: Any = self.server.connect()
        return self

    def __exit__(self, *_: object) -> None:
        self.admin.close()
        self.server.kill()

    def _read_password(self, user: str) -> str:
        return (self._files / f"{user}.password").read_text().strip()

    def url(self, user: str) -> str:
        """The setting SANDFLEET_REDIS_URL of one user."""
        return f"redis://{user}:{self._read_password(user)}@127.0.0.1:{self.server.port}/0"

    def connect(self, user: str) -> Any:
        """Return redis-py's own client of one user."""
        return self.server.connect(username=user, password=self._read_password(user))

    def read_refusals(self) -> list[tuple[str, str, str]]:
        """Return user, context and object of each call that Redis has refused, and forget them."""
        found: list[dict[str, Any]] = self.admin.acl_log()
        self.admin.acl_log_reset()
        return [(entry["username"], entry["context"], entry["object"]) for entry in found]


class UserCluster(Cluster):
    """A `Cluster` whose servers have the users that deploy/redis/make_users.py makes, and no other password."""

    def __init__(self, folder: Path, *queues: str) -> None:
        self._files = folder / "users"
        words = [word for queue in queues for word in ("--queue", queue)]
        subprocess.run([sys.executable, str(MAKE_USERS), str(self._files), *words], check=True)
        super().__init__(folder)

    def _new_server(self, folder: Path, port: int) -> Server:
        options = ["--aclfile", str(self._files / "users.acl"), "--appendonly", "yes", "--save", ""]
        options += ["--masteruser", "replica", "--masterauth", self.read_password("replica")]
        options += ["--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1"]
        return Server(folder / f"redis-{port}", port, options, self.read_password("admin"), username="admin")

    def _new_sentinel(self, folder: Path, port: int, primary: int, down_ms: int) -> Server:
        sentinel = super()._new_sentinel(folder, port, primary, down_ms)
        config = Path(sentinel.arguments[0])
        shared = f"sentinel auth-pass {SERVICE} {PASSWORD}\n"
        own = f"sentinel auth-user {SERVICE} sentinel\nsentinel auth-pass {SERVICE} {self.read_password('sentinel')}\n"
        assert shared in config.read_text()
        config.write_text(config.read_text().replace(shared, own))
        return sentinel

    def read_password(self, user: str) -> str:
        """Return the password that was made for a user."""
        return (self._files / f"{user}.password").read_text().strip()

    def url_of(self, user: str) -> str:
        """The setting SANDFLEET_REDIS_URL of one user."""
        return self.url.replace(f"://:{PASSWORD}@", f"://{user}:{self.read_password(user)}@")

    def read_refusals(self) -> list[tuple[str, str]]:
        """Return user and object of each call that the primary has refused."""
        with self.find_primary().connect() as admin:
            found: Any = admin.acl_log()
        return [(entry["username"], entry["object"]) for entry in found]
