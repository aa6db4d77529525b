"""``sandfleet-worker local``: a whole fleet on one machine, whose parts end together.

The parts are a private Redis, one worker, the sender of webhooks and Flower.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

import redis
from pydantic import SecretStr
from sandfleet_config.settings import LOCAL_HISTORY, LOCAL_STORE
from sandfleet_config.units import format_count

from sandfleet_worker.app import new_app
from sandfleet_worker.commands.demo_batch import submit_demo
from sandfleet_worker.commands.failures import LocalFailed
from sandfleet_worker.system.children import Child, Stage
from sandfleet_worker.system.oom_score import FLOWER, LOCAL_REDIS, LOCAL_WORKER, lower_oom_score, raise_oom_score

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandfleet_config.settings import WorkerSettings

REDIS_DEADLINE_SECONDS = 60.0
WORKER_DEADLINE_SECONDS = 60.0
FLOWER_DEADLINE_SECONDS = 30.0
DRAIN_SECONDS = 10.0
WORKER = "worker"
WEB_PACKAGE = "sandfleet_web"
FLOWER_USER = "sandfleet"
ADDRESS = "127.0.0.1"
HANDLED_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """SIGINT or SIGTERM: end everything in order."""


def run_local(settings: WorkerSettings, flower_port: int | None, *, has_demo: bool = False) -> int:
    """Run the stack until a signal or the end of one of its parts; return the exit code.

    `flower_port` None: no Flower. `has_demo` submits a batch to look at.

    Raises:
        LocalFailed: another one runs, a part is missing, or a part ended by itself.
    """
    if settings.redis_url.get_secret_value():
        msg = "SANDFLEET_REDIS_URL is set, and `local` brings its own Redis: unset it, or run sandfleet-worker start"
        raise LocalFailed(msg)
    children: list[Child] = []
    with _Signals(children) as signals, _exclusive(settings.local_dir), contextlib.ExitStack() as parts:
        try:
            _make_store(settings)
            children.append(_start_redis(settings, parts))
            settings = settings.model_copy(update={"redis_url": SecretStr(_socket_url(settings))})
            children.append(_start_worker(settings, parts))
            _wait_for_worker(settings, children)
            children += _start_sender(settings, parts)
            if flower_port is not None:
                children.append(_start_flower(settings, parts, flower_port))
            if has_demo:
                _say(submit_demo(settings.images.root, _environment(settings)))
            at_once = format_count(settings.concurrency, "sandbox", "sandboxes")
            _say(f"sandfleet is up: {at_once} at once, Redis on {settings.local_dir}/redis.sock")
            _say("try: sandfleet run --image python -- python3 -c 'print(6*7)'")
            _say("Ctrl-C here ends it all; queued jobs are kept")
            _watch(children)
        except Interrupted:
            _say("ending; a job that still runs after 10 s goes back to the queue (Ctrl-C again: at once)")
        finally:
            signals.is_ending = True
    return 0


class _Signals:
    """SIGINT and SIGTERM: the first raises `Interrupted`.

    Each later one takes the running jobs back at once. No second one raises, and none does while
    the stack ends: its end must not be interrupted half way. Leaving the context swallows
    `Interrupted`, and both signals are ignored from then on. Python would restore their default
    action while it shuts down, and a late signal would kill this process.
    """

    def __init__(self, children: list[Child]) -> None:
        self._children, self.is_ending = children, False
        for number in HANDLED_SIGNALS:
            signal.signal(number, self._handle)

    def __enter__(self) -> Self:
        """Return the handlers, which are set already."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        """Ignore both signals from now on: everything has ended."""
        self.is_ending = True
        for number in HANDLED_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        return kind is not None and issubclass(kind, Interrupted)

    def _handle(self, *_: object) -> None:
        if not self.is_ending:
            self.is_ending = True
            raise Interrupted
        for child in self._children:
            if child.name == WORKER:
                child.send(signal.SIGQUIT)


@contextlib.contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    """Own `folder`, for one stack a machine.

    The lock goes with the process, so nothing stale can block.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        lock = os.open(folder / "local.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        msg = f"cannot use {folder}: {error.strerror}; run as root, or set SANDFLEET_LOCAL_DIR and SANDFLEET_LOCAL_STATE_DIR"
        raise LocalFailed(msg) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(lock, 32, 0).decode().strip() or "?"
            msg = f"it runs already (process {pid}, {folder}): use that one, or end it with: kill {pid}"
            raise LocalFailed(msg) from None
        os.truncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(lock)


def _socket_url(settings: WorkerSettings) -> str:
    return f"unix://{settings.local_dir}/redis.sock?db=0"


def _environment(settings: WorkerSettings) -> dict[str, str]:
    return {**os.environ, "SANDFLEET_REDIS_URL": _socket_url(settings)}


def _make_store(settings: WorkerSettings) -> None:
    """Make the folder of the store, and the links by which local producers find it and the history."""
    folder = settings.local_state_dir / LOCAL_STORE
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in (LOCAL_STORE, LOCAL_HISTORY):
        link = settings.local_dir / name
        link.unlink(missing_ok=True)
        link.symlink_to((settings.local_state_dir / name).absolute())


def _start_redis(settings: WorkerSettings, parts: contextlib.ExitStack) -> Child:
    binary = shutil.which("redis-server")
    if binary is None:
        msg = "redis-server was not found: install redis-server (Debian: apt-get install redis-server)"
        raise LocalFailed(msg)
    settings.local_state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    socket_path = settings.local_dir / "redis.sock"
    options = {
        "port": "0",
        "unixsocket": str(socket_path),
        "unixsocketperm": "700",
        "dir": str(settings.local_state_dir),
        "appendonly": "yes",
        "save": "",
        "maxmemory-policy": "noeviction",
        "loglevel": "warning",
        "logfile": str(settings.local_state_dir / "redis.log"),
        "daemonize": "no",
    }
    command = [binary, *(word for name, value in options.items() for word in (f"--{name}", value))]
    child = Child("redis", command, os.environ, on_parent_death=signal.SIGTERM)
    lower_oom_score(child.pid, LOCAL_REDIS)
    parts.callback(socket_path.unlink, missing_ok=True)
    parts.callback(child.stop, Stage(signal.SIGTERM, 30.0))
    client = redis.Redis.from_url(_socket_url(settings))
    deadline = time.monotonic() + REDIS_DEADLINE_SECONDS
    while True:
        try:
            client.ping()
        except (redis.RedisError, OSError) as error:
            if child.ended is not None or time.monotonic() > deadline:
                msg = f"the private Redis does not start: {error}; its log and data are in {settings.local_state_dir}"
                raise LocalFailed(msg) from error
            time.sleep(0.02)
        else:
            client.close()
            return child


def _start_worker(settings: WorkerSettings, parts: contextlib.ExitStack) -> Child:
    command = [sys.executable, "-m", "sandfleet_worker.cli", "start", "--concurrency", str(settings.concurrency)]
    child = Child(WORKER, command, _environment(settings), on_parent_death=signal.SIGKILL)
    raise_oom_score(child.pid, LOCAL_WORKER)  # Redis comes last even without the right to lower its score
    parts.callback(child.stop, Stage(signal.SIGTERM, DRAIN_SECONDS), Stage(signal.SIGQUIT, 15.0))
    return child


def _wait_for_worker(settings: WorkerSettings, children: list[Child]) -> None:
    app = new_app(settings)
    deadline = time.monotonic() + WORKER_DEADLINE_SECONDS
    while not app.control.ping(timeout=0.2, limit=1):
        _refuse_ended(children)
        if time.monotonic() > deadline:
            msg = f"the worker is not ready after {WORKER_DEADLINE_SECONDS:g} s: try sandfleet-worker doctor"
            raise LocalFailed(msg)
    app.close()


def _start_sender(settings: WorkerSettings, parts: contextlib.ExitStack) -> list[Child]:
    """Start `sandfleet-web notify`, if that distribution is installed; import no code of it."""
    if importlib.util.find_spec(WEB_PACKAGE) is None:
        _say("no webhooks are sent (submit --on-done): sandfleet-web is not installed")
        return []
    command = [sys.executable, "-m", f"{WEB_PACKAGE}.cli", "notify"]
    child = Child("sandfleet-web notify", command, _environment(settings), on_parent_death=signal.SIGKILL)
    raise_oom_score(child.pid, FLOWER)
    parts.callback(child.stop, Stage(signal.SIGTERM, 5.0))
    return [child]


def _start_flower(settings: WorkerSettings, parts: contextlib.ExitStack, wanted_port: int) -> Child:
    port, password = _free_port(wanted_port), secrets.token_urlsafe(12)
    command = [sys.executable, "-m", "celery", "--quiet", "-A", "sandfleet_worker.app", "flower"]
    command += [f"--conf={Path(__file__).parents[1] / 'flowerconfig.py'}", f"--address={ADDRESS}", f"--port={port}"]
    # By environment: every user of the machine can read a command line.
    env = {**_environment(settings), "FLOWER_BASIC_AUTH": f"{FLOWER_USER}:{password}"}
    child = Child("flower", [*command, "--logging=warning"], env, on_parent_death=signal.SIGKILL)
    raise_oom_score(child.pid, FLOWER)
    parts.callback(child.stop, Stage(signal.SIGTERM, 5.0))
    deadline = time.monotonic() + FLOWER_DEADLINE_SECONDS
    while not _is_listening(port) and time.monotonic() < deadline:
        _refuse_ended([child])
        time.sleep(0.05)
    _say(f"Flower: http://{ADDRESS}:{port}  user {FLOWER_USER}  password {password}")
    if importlib.util.find_spec(WEB_PACKAGE) is not None:
        _say(f"pages of the fleet: http://{ADDRESS}:{port}/fleet/  (the same user and password)")
    return child


def _is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((ADDRESS, port)) == 0


def _free_port(wanted: int) -> int:
    for port in (wanted, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((ADDRESS, port))
            return int(probe.getsockname()[1])
    msg = "no free port for Flower: run with --no-flower"
    raise LocalFailed(msg)


def _watch(children: list[Child]) -> None:
    while True:
        _refuse_ended(children)
        time.sleep(0.2)


def _refuse_ended(children: list[Child]) -> None:
    for child in children:
        if child.ended is not None:
            msg = f"{child.name} ended by itself with {child.ended}; its last lines above say why, the rest is being ended too"
            raise LocalFailed(msg)


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201  the command's output
