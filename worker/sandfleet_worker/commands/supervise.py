"""``sandfleet-worker start`` with several worker processes: this one is their supervisor.

It imports little, so that it costs little memory beside them: the preflight has a process of its
own, too, which ends. Each worker process gets its part of the spares, of the memory of prepared
ones, of the boots at once, and a port (`share_settings`). Slots and the memory of jobs need no
parts: workers of one host share them by lock files.

A worker process whose supervisor is killed gets SIGTERM, and drains: its jobs may end, nothing is
charged, and its sandboxes go before it does.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

from sandfleet_config.logs import set_up_handler
from sandfleet_config.settings import PREFIX, SettingsInvalid, WorkerSettings

from sandfleet_worker.system.children import Child
from sandfleet_worker.system.supervisor import Supervisor, describe_end, to_exit_code

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

PROGRAM: Final = "sandfleet-worker"
PREFLIGHT: Final = 0
"""The number of the process that only does the preflight."""
MAX_PORT: Final = 65535
POLL_SECONDS: Final = 1.0


def supervise(settings: WorkerSettings) -> int:
    """Do the preflight in a process of its own, then keep the worker processes up; return the exit code.

    Raises:
        SettingsInvalid: there are not as many ports for metrics.
    """
    count = settings.process_count
    set_up_handler(settings.log_format, settings.log_level, PROGRAM, version(PROGRAM), settings.host_name)
    check_ports(settings, count)
    env = new_environment(settings, count)
    preflight = Child("preflight", new_command(PREFLIGHT), env, on_parent_death=signal.SIGTERM)
    while not preflight.wait(POLL_SECONDS):
        pass
    if preflight.ended:
        log.critical("the preflight has ended with %s", describe_end(preflight.ended), extra={"action": "start_failed"})
        return to_exit_code(preflight.ended)
    log.info(
        "starting %d processes for %d sandboxes at once", count, settings.concurrency, extra={"action": "supervised"}
    )
    # Of a terminal that is closed, all must end; its processes have none.
    hangup = signal.SIGTERM if os.isatty(0) else signal.SIGHUP
    code = Supervisor(_new_starter(env), count, hangup).run()
    log.info("all processes have ended", extra={"action": "worker_stopped"})
    return code


def _new_starter(env: dict[str, str]) -> Callable[[int, int], Child]:
    def start(number: int, ready_fd: int) -> Child:
        command = new_command(number, ready_fd)
        return Child(f"process {number}", command, env, on_parent_death=signal.SIGTERM, pass_fds=[ready_fd])

    return start


def new_command(number: int, ready_fd: int | None = None) -> list[str]:
    """Return the command of one process."""
    told = [] if ready_fd is None else ["--ready-fd", str(ready_fd)]
    return [sys.executable, "-m", "sandfleet_worker.cli", "process", str(number), *told]


def new_environment(settings: WorkerSettings, count: int) -> dict[str, str]:
    """Return the environment of the processes: ours, with what options have set."""
    told = {"CONCURRENCY": str(settings.concurrency), "QUEUE": settings.queue, "PROCESSES": str(count)}
    changed = {f"{PREFIX}{name}": value for name, value in told.items()}
    return {key: value for key, value in os.environ.items() if key.upper() not in changed} | changed


def check_ports(settings: WorkerSettings, count: int) -> None:
    """Refuse a port for metrics after which there are not enough.

    Raises:
        SettingsInvalid: it says so.
    """
    port = settings.metrics.port
    if port and port + count - 1 > MAX_PORT:
        msg = f"SANDFLEET_METRICS__PORT: {port} is too high: each of {count} processes takes a port, this one and the next"
        raise SettingsInvalid(msg)


def share_settings(settings: WorkerSettings, number: int) -> WorkerSettings:
    """Return the settings of one process, from 1: its part of the spares, and its port. Pure.

    Its part of the prepared spares' memory has room for one preparation at least.
    """
    count, size, port = settings.process_count, settings.warm.size, settings.metrics.port
    own_size = size // count + (number <= size % count)
    prepared = settings.prepared
    own_bytes = max(prepared.budget_bytes // count, min(prepared.budget_bytes, prepared.spare_bytes))
    return settings.model_copy(
        update={
            "processes": 1,
            "prepared": prepared.model_copy(update={"budget_bytes": own_bytes}),
            "warm": settings.warm.model_copy(update={"size": own_size}),
            "metrics": settings.metrics.model_copy(update={"port": port and port + number - 1}),
        }
    )


def share_boots(count: int, cores: int | None = None) -> int:
    """Return how many sandboxes one of `count` processes may boot at once. Pure."""
    from sandfleet_worker.sandbox.warm.boot_limit import BOOTS_PER_CORE

    return -(-BOOTS_PER_CORE * (cores or os.cpu_count() or 1) // count)


def run_process(settings: WorkerSettings, number: int, ready_fd: int) -> int:
    """Run one of the processes, or the preflight; return its exit code.

    Raises:
        PreflightFailed: no job could run; none was taken.
        SandboxError: the runner cannot even be set up.
    """
    if number == PREFLIGHT:
        return _prove(settings)
    from sandfleet_worker.commands.start import OneOfSeveral, serve

    # Until Celery takes the signal over: an exception removes what was made so far.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    os.set_inheritable(ready_fd, False)
    told: list[int] = []

    def say_ready() -> None:
        if not told:  # Celery is ready again after each lost connection
            told.append(os.write(ready_fd, b"1"))
            os.close(ready_fd)

    one = OneOfSeveral(number, share_boots(settings.process_count), say_ready)
    return serve(share_settings(settings, number), one)


def _prove(settings: WorkerSettings) -> int:
    from sandfleet_worker.commands.preflight import run_preflight
    from sandfleet_worker.sandbox.runner import RunscRunner
    from sandfleet_worker.system.logs import set_up_logs

    set_up_logs(settings)
    with RunscRunner(settings) as runner:
        run_preflight(settings, runner)
    return 0
