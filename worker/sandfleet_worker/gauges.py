"""A worker as its metrics say it is at the moment."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

from sandfleet_worker.metrics.families import WorkerGauges
from sandfleet_worker.sandbox.process.runsc import find_runsc

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandfleet_worker.host import Host


def new_gauge_reader(host: Host) -> Callable[[], WorkerGauges]:
    """Return what reads the gauges of this worker, in any thread; it asks neither Redis nor runsc."""
    settings, intake = host.settings, host.intake
    own_version, runsc = version("sandfleet-worker"), find_runsc(settings.runsc.path).version

    def read() -> WorkerGauges:
        waiting = len(intake.held_claims.waiting_job_ids())
        slots, busy = host.slots.count()
        prepared = host.runner.read_prepared()
        return WorkerGauges(
            state="stopping" if intake.lease.is_stopping else intake.report.mark.state,
            running=max(0, len(intake.held_claims.running_job_ids()) - waiting),
            waiting=waiting,
            slots=slots,
            busy=busy,
            warm=_name_images(host),
            boot_failures=host.runner.boot_failures,
            prepared_misses=prepared.misses,
            quarantined=len(prepared.quarantined),
            lease_margin=intake.lease.margin_seconds,
            leases_lost=int(intake.lease.is_lost),
            takeovers=intake.sweeper.takeovers,
            version=own_version,
            runsc=runsc,
            platform=settings.runsc.platform,
        )

    return read


def _name_images(host: Host) -> dict[str, int]:
    """Return how many spares are up, by the name of their image, by its digest where it has none."""
    names = {digest: name for name, digest, *_ in reversed(host.intake.report.images)}
    warm: dict[str, int] = {}
    for digest, count in host.runner.count_warm().items():
        name = names.get(digest, digest)
        warm[name] = warm.get(name, 0) + count
    return warm
