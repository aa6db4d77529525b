"""The Celery app of workers and of Flower.

It reads the settings when it is first used, never at import.
``celery -A sandfleet_worker.app inspect ping`` and ``celery -A sandfleet_worker.app flower`` work
as people expect; workers are started by ``sandfleet-worker start``, which proves first that a
sandbox runs.
"""

from __future__ import annotations

from typing import Any

from celery import Celery
from sandfleet_config.celery import shared_options
from sandfleet_config.settings import WorkerSettings

from sandfleet_worker.tasks import RunTask

BACKENDS = "sandfleet_worker.celery_worker.backend"


def worker_options(settings: WorkerSettings) -> dict[str, Any]:
    """Return Celery's configuration for this side."""
    shared = shared_options(settings)
    backend = f"{BACKENDS}:{'SentinelClaimsBackend' if settings.sentinels else 'ClaimsBackend'}"
    return {
        **shared,
        # `finish` in place of check-then-set; Celery's own prefix of a socket's scheme goes, ours
        # names the class.
        "result_backend": f"{backend}+{shared['result_backend'].removeprefix('redis+')}",
        "worker_pool": "sandfleet_worker.celery_worker.pool:SandboxPool",
        "worker_consumer": "sandfleet_worker.celery_worker.consumer:SandboxConsumer",
        "worker_concurrency": settings.concurrency,
        "worker_disable_rate_limits": True,
        "worker_redirect_stdouts": False,
        # One backend, and one pool of connections, for all threads instead of one for each.
        "result_backend_thread_safe": True,
    }


def new_app(settings: WorkerSettings | None = None) -> Celery:
    """Build the app; without `settings` it reads the environment when first used."""
    app = Celery("sandfleet", set_as_current=settings is None)
    app.add_defaults(lambda: worker_options(settings or WorkerSettings()))

    def register(**_: object) -> None:
        app.register_task(RunTask())

    # Not here and now: binding a task to its app reads the settings.
    app.on_after_finalize.connect(register, weak=False)
    return app


app = new_app()
