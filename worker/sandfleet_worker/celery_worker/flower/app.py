"""Puts sandfleet's parts into Flower, before Flower builds itself."""

from __future__ import annotations

import logging
import signal
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import redis
from flower import command, events, urls
from flower.app import Flower
from flower.views.tasks import TASK_COLUMNS
from sandfleet_config.audit import list_audit_args
from sandfleet_config.logs import is_json, set_up_handler
from sandfleet_config.queues import KEY_PREFIX
from sandfleet_config.scripts import read_script
from sandfleet_config.settings import WorkerSettings
from sandfleet_config.terminal import write_line
from tornado.ioloop import PeriodicCallback

from sandfleet_worker.celery_worker.control import cancel_waiting
from sandfleet_worker.celery_worker.flower.jobs import COLUMNS, JobTask
from sandfleet_worker.celery_worker.flower.pages import CHANGED, NOT_HERE, PageLoader, change_route, handler_of
from sandfleet_worker.celery_worker.flower.truth import Truth, read_knowledge, read_lengths
from sandfleet_worker.delivery.identity import Identity
from sandfleet_worker.delivery.ledger import Ledger
from sandfleet_worker.host import connect

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence

log = logging.getLogger(__name__)

POLL_SECONDS = 2.0
ANSWER_SECONDS = 5.0
"""Timeout of a call to Redis."""


def install(token: str) -> None:
    """Change Flower's routes, its templates and the parts of a job that it keeps.

    `token` reads the API, empty for none.

    Raises:
        ImportError: a part to change is not there.
    """
    missing = {*CHANGED, *NOT_HERE} - {handler_of(route) for route in urls.handlers}
    if missing:
        raise ImportError("no route of " + ", ".join(sorted(part.__name__ for part in missing)))
    _set_up_logs()
    urls.handlers[:] = [change_route(route, token) for route in urls.handlers]
    urls.settings["template_loader"] = PageLoader(urls.settings["template_path"])
    TASK_COLUMNS.update(COLUMNS)
    events.EventsState.Task = JobTask
    command.Flower = SandfleetFlower


def _set_up_logs() -> None:
    """Write JSON if the settings say so; else the lines are Flower's own."""
    settings = WorkerSettings()
    if settings.log_format == "json":
        set_up_handler("json", settings.log_level, "flower", version("flower"), settings.host_name)


def say(text: str) -> None:
    """Write a line to stderr; a log line where logs are JSON."""
    if is_json():
        log.warning("%s", text)
    else:
        write_line(text)


def stop_on_sigterm(io_loop: Any) -> None:
    """Make SIGTERM stop the loop.

    Flower's own handler raises SystemExit wherever the main thread is; in a destructor Python drops it.
    """
    loop: asyncio.AbstractEventLoop = io_loop.asyncio_loop
    loop.add_signal_handler(signal.SIGTERM, io_loop.stop)


class SandfleetFlower(Flower):
    """Flower with an eye on Redis."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        settings = WorkerSettings()
        since = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
        self.note = (
            f"Flower remembers the last {self.options.max_tasks:,} tasks, and none from before its start at {since}."
        )
        self.truth = Truth(self.events.state, self.inspector.workers, self.options.purge_offline_workers or 0)
        self._redis: redis.Redis = connect(settings, ANSWER_SECONDS)
        self._ledger = Ledger(self._redis, Identity.new(settings.host_name), settings.result_ttl_seconds)
        self._is_failing = False
        self._poll = PeriodicCallback(self.poll, POLL_SECONDS * 1000)

    def start(self) -> None:
        """Run until `stop`, or a signal."""
        self._poll.start()
        stop_on_sigterm(self.io_loop)
        super().start()

    async def poll(self) -> None:
        """Correct what Flower has wrong.

        Without Redis only the workers can be judged, by their silence.
        """
        self.truth.clear_dead_workers()
        job_ids = self.truth.find_unfinished()
        try:
            knowledge = await self.io_loop.run_in_executor(None, read_knowledge, self._redis, job_ids)
        except (redis.RedisError, OSError) as error:
            self._note_failure(error)
        else:
            self._is_failing = False
            self.truth.correct(knowledge)

    def _note_failure(self, error: Exception) -> None:
        if not self._is_failing:
            log.warning("cannot compare with Redis: %s", error)
        self._is_failing = True

    def read_queue_lengths(self, names: Sequence[str]) -> dict[str, int]:
        """Return how many messages are in each queue.

        Blocks, and may raise ``redis.RedisError``.
        """
        return read_lengths(self._redis, names)

    def add_audit(self, fields: dict[str, str]) -> None:
        """Append a line to the fleet's audit.

        Blocks, and may raise ``redis.RedisError``.
        """
        self._redis.register_script(read_script("add_audit"))(args=[KEY_PREFIX, *list_audit_args(fields)])

    def cancel(self, job_id: str) -> str:
        """Cancel a job, durably, and say what that means.

        Blocks, and may raise ``redis.RedisError``.
        """
        match cancel_waiting(self._ledger, job_id):
            case "queued":
                return f"{job_id} is cancelled: it waited in its queue and will not start"
            case "running":
                tell: Callable[..., Any] = self.capp.control.revoke
                tell(job_id, terminate=True)  # its worker would learn it with its next beat, too
                return f"{job_id} is cancelled: its sandbox is ended where it runs, and it will not start again"
            case "ended":
                return f"{job_id} has ended already: nothing is cancelled"
            case _:
                return f"Redis has no record of {job_id}: should a message with this ID come, it will not start"
