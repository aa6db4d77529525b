"""Run one worker in this process until a signal ends it."""

from __future__ import annotations

import contextlib
import logging
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import redis
from celery import signals
from sandfleet_config.logs import name_process

from sandfleet_worker.app import new_app
from sandfleet_worker.celery_worker.control import install_commands
from sandfleet_worker.commands.failures import PreflightFailed
from sandfleet_worker.commands.preflight import run_preflight
from sandfleet_worker.host import Host, connect
from sandfleet_worker.sandbox.runner import RunscRunner
from sandfleet_worker.shared_images import FleetImages
from sandfleet_worker.system.logs import set_up_logs
from sandfleet_worker.tasks import run_task

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sandfleet_config.settings import WorkerSettings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OneOfSeveral:
    """One of several processes of a worker, whose supervisor has proved that sandboxes run here."""

    number: int
    boots: int
    """Sandboxes that it may boot at once."""
    say_ready: Callable[[], None]


def serve(settings: WorkerSettings, one: OneOfSeveral | None = None) -> int:
    """Prove that sandboxes run here, then take jobs; return the process's exit code.

    `one` is this process where there are several.

    Raises:
        PreflightFailed: no job could run; none was taken.
        SandboxError: the runner cannot even be set up.
    """
    set_up_logs(settings)
    boots = None
    if one is not None:
        name_process(one.number)
        signals.worker_ready.connect(lambda **_: one.say_ready(), weak=False)
        boots = one.boots
    with (
        closing(FleetImages(settings, connect(settings))) as shared,
        RunscRunner(settings, shared, boots=boots) as runner,
    ):
        if one is None:
            run_preflight(settings, runner)
        else:
            runner.sweep()  # of one that was killed before
        host = open_host(settings, runner, shared)
        try:
            runner.warm_up()  # after it is known how many sandboxes have a place
            runner.call_on_failure(host.intake.exit.drain)
            with _open_metrics(settings, host):
                return _work(settings, host)
        finally:
            host.close()


@contextlib.contextmanager
def _open_metrics(settings: WorkerSettings, host: Host) -> Iterator[None]:
    """Serve the worker's metrics, if the settings have a port for them.

    Raises:
        PreflightFailed: the port, the address or the token's file cannot be used.
    """
    if host.counts is None:
        yield
        return
    from sandfleet_worker.gauges import new_gauge_reader
    from sandfleet_worker.metrics.endpoint import open_endpoint

    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(open_endpoint(settings.metrics, host.counts, new_gauge_reader(host)))
        except OSError as error:
            fix = "choose another SANDFLEET_METRICS__PORT: each worker of a host needs its own"
            msg = f"{error.filename}: {error.strerror}\n  fix: {fix}"
            raise PreflightFailed(msg) from error
        yield


def open_host(settings: WorkerSettings, runner: RunscRunner, shared: FleetImages) -> Host:
    """Join the host's slots and begin the lease.

    Raises:
        PreflightFailed: Redis, or what this host needs for it, is there no longer.
    """
    try:
        return Host.open(settings, runner, shared)
    except (redis.RedisError, ConnectionError, TimeoutError) as error:  # it was there a moment ago
        msg = f"redis: {settings.redis_address}: {error}\n  fix: start Redis again, then the worker"
        raise PreflightFailed(msg) from error
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        fix = "make room there, or let the worker's user write there; then start the worker again"
        msg = f"this host: {what}\n  fix: {fix}"
        raise PreflightFailed(msg) from error


def _work(settings: WorkerSettings, host: Host) -> int:
    install_commands()
    app = new_app(settings)
    run_task(app).host = host

    def announce(**_: object) -> None:
        text = "worker %s is ready: queue %s, %d sandboxes at once on this host"
        log.info(text, host.worker, settings.queue, settings.concurrency, extra={"action": "worker_ready"})

    signals.worker_ready.connect(announce)
    worker = app.Worker(
        # Celery puts the host's name behind the @; the process id keeps two workers of a host
        # apart.
        hostname=f"{host.worker}@{host.name}",
        queues=[settings.queue],
        without_mingle=True,
        without_gossip=True,
        quiet=True,
        loglevel=settings.log_level,
        redirect_stdouts=False,
    )
    worker.start()
    if host.intake.exit.code is not None:
        return host.intake.exit.code
    log.info("worker %s has stopped", host.worker, extra={"action": "worker_stopped"})
    return worker.exitcode or 0
