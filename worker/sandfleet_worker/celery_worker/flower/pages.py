"""Flower's pages and its API, as far as they are other than Flower's own."""

from __future__ import annotations

import hmac
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flower.api import BaseApiHandler, control, tasks
from flower.views.broker import BrokerView
from flower.views.monitor import Metrics
from sandfleet_config.queues import JOB_ID
from tornado import template, web

from sandfleet_worker.celery_worker.flower.audited import Audited
from sandfleet_worker.delivery.outages import REDIS_ERRORS

if TYPE_CHECKING:
    from collections.abc import Iterable

REPLY_SECONDS = 5.0

SIZE = "not in sandfleet: how many jobs a host runs at once is its setting SANDFLEET_CONCURRENCY"
QUEUES = "not in sandfleet: the queues of a worker are its settings SANDFLEET_QUEUE and SANDFLEET_QUEUES"
NOT_HERE: dict[type, str] = {
    control.WorkerPoolGrow: SIZE,
    control.WorkerPoolShrink: SIZE,
    control.WorkerPoolAutoscale: SIZE,
    control.WorkerPoolRestart: "not in sandfleet: every job has a process of its own. Drain the worker to start it anew",
    control.WorkerQueueAddConsumer: QUEUES,
    control.WorkerQueueCancelConsumer: QUEUES,
    control.TaskTimout: "not in sandfleet: each job says its own limit, `timeout`",
    control.TaskRateLimit: f"{SIZE}; its rate has no limit",
    tasks.TaskAbort: "not in sandfleet: cancel a job by /api/task/revoke/ID",
    tasks.TaskApply: "not here: it would show the program's output. Use `sandfleet run`",
    tasks.TaskResult: "not here: it would show the program's output. Use `sandfleet show ID`",
}
"""Controls of Flower that sandfleet does not have, each with what to use instead."""


class TokenReader:
    """A handler whose GET takes the bearer token in place of the password.

    It is for Prometheus and for programs that only read.
    """

    token = ""

    def get_current_user(self) -> Any:
        """Return who asks."""
        handler: Any = self
        kind, _, given = handler.request.headers.get("Authorization", "").partition(" ")
        is_reader = self.token and kind == "Bearer" and handler.request.method in {"GET", "HEAD"}
        # Bytes: strings that are not ASCII cannot be compared so.
        if is_reader and hmac.compare_digest(given.encode(), self.token.encode()):
            return True
        return super().get_current_user()  # type: ignore[misc]  # Flower's


class NotHere(BaseApiHandler):
    """Answers 404 and why, where Flower would fail or say that it had done something."""

    def initialize(self, text: str) -> None:
        """Take the text from the route."""
        self.text = text

    @web.authenticated
    def get(self, *_: str) -> None:
        """Say it."""
        self.set_status(404)
        self.set_header("Content-Type", "text/plain; charset=UTF-8")
        self.write(self.text)

    post = get


class GuardedMetrics(Metrics):
    """Flower's metrics: they name hosts and workers, so they need the password or the token."""

    @web.authenticated
    async def get(self) -> None:
        """Write them."""
        await super().get()


class QueueReader:
    """Reads the lengths of queues by sandfleet's own client.

    Flower's knows neither more than one sentinel, nor the user of a socket.
    """

    def __init__(self, application: Any) -> None:
        self._application = application

    async def queues(self, names: Iterable[str]) -> list[dict[str, Any]]:
        """Return name and length of each, as Flower's own does."""
        app = self._application
        lengths = await app.io_loop.run_in_executor(None, app.read_queue_lengths, list(names))
        return [{"name": name, "messages": count} for name, count in lengths.items()]


class NamesQueues:
    """A handler that knows every queue that holds jobs: workers name only their own."""

    def get_active_queue_names(self) -> list[str]:
        """Return the names."""
        handler: Any = self
        return sorted({*super().get_active_queue_names(), *handler.application.truth.queues})  # type: ignore[misc]

    def get_broker(self) -> QueueReader:
        """Return who knows the lengths of queues."""
        handler: Any = self
        return QueueReader(handler.application)


class Queues(NamesQueues, BrokerView):
    """The Broker page."""


class QueueLengths(NamesQueues, tasks.GetQueueLengths):
    """The API of queue lengths."""


class Cancel(Audited, control.TaskRevoke):
    """Cancels a job for good, whether or not its worker lives."""

    @web.authenticated
    async def post(self, job_id: str) -> None:
        """Cancel it, and say what that means for it."""
        if self.application.options.read_only:
            raise web.HTTPError(403, "Flower is read-only here")
        if not JOB_ID.match(job_id):
            raise web.HTTPError(404, "this cannot be the ID of a job")
        reason, cancel = self.read_reason(is_needed=False), self.application.cancel
        text = await self.run_blocking("job.cancel", job_id, cancel, job_id, connection_errors=REDIS_ERRORS)
        self.write({"message": await self.note("cancel", job_id, reason, text)})


class Drain(Audited, control.WorkerShutDown):
    """Lets a worker end: it takes no more jobs, and gives back what does not end in time.

    It takes capacity away, so it needs a reason.
    """

    @web.authenticated
    async def post(self, name: str) -> None:
        """Tell the worker, and say what it answers."""
        if self.application.options.read_only:
            raise web.HTTPError(403, "Flower is read-only here")
        if not self.is_worker(name):
            raise web.HTTPError(404, f"Unknown worker '{name}'")
        reason = self.read_reason(is_needed=True)
        send = self.capp.control.broadcast
        options = {"destination": [name], "reply": True, "limit": 1, "timeout": REPLY_SECONDS}
        answers = await self.run_blocking("worker.drain", name, send, "shutdown", **options)
        if not answers:
            raise web.HTTPError(503, f"{name} gives no answer within {REPLY_SECONDS:g} s: it may be dead")
        text = answers[0][name]["ok"]
        text = await self.note("drain worker", name, reason, text)
        if "text/html" in self.request.headers.get("Accept", ""):  # the form of the worker's page
            self.set_header("Content-Type", "text/plain; charset=UTF-8")
            self.write(text)
        else:
            self.write({"message": text})


CHANGED: dict[type, type] = {
    Metrics: GuardedMetrics,
    BrokerView: Queues,
    tasks.GetQueueLengths: QueueLengths,
    control.TaskRevoke: Cancel,
    control.WorkerShutDown: Drain,
}


def change_route(route: Any, token: str) -> Any:
    """Return a route of Flower's with our handler in place of its own, where ours differs."""
    pattern, handler, options, name = _take_apart(route)
    if handler in NOT_HERE:
        return web.url(pattern, NotHere, {"text": NOT_HERE[handler]}, name)
    changed = CHANGED.get(handler, handler)
    if issubclass(changed, BaseApiHandler | Metrics):
        changed = type(changed.__name__, (TokenReader, changed), {"token": token})
    return route if changed is handler else web.url(pattern, changed, options, name)


def handler_of(route: Any) -> type:
    """Return the handler of a route, which Flower writes as a tuple or as tornado's own class."""
    return _take_apart(route)[1]


def _take_apart(route: Any) -> tuple[str, type, dict[str, Any] | None, str | None]:
    if isinstance(route, tuple):
        return route[0], route[1], route[2] if len(route) > 2 else None, None  # noqa: PLR2004
    return route.regex.pattern, route.handler_class, route.kwargs, route.name


OWN_TEMPLATES = Path(__file__).parent / "templates"
HIDDEN_FIELDS = [
    *("name", "uuid", "state", "args", "kwargs", "result"),  # shown above the others
    *("exception", "traceback", "timestamp", "clock", "retries"),  # told already by result, times and attempt
    *("root", "root_id", "parent", "parent_id", "children"),  # jobs have no relatives
]
"""Fields that the page of a job does not list."""
FLEET_TAB = """<ul class="app-nav navbar-nav">
        {% if handler.settings.get("fleet_pages") %}
        <li class="nav-item"><a class="nav-link" href="{{ reverse_url("fleet") }}">Fleet</a></li>
        {% end %}"""
"""The tab of the pages that a plugin has mounted (`plugins`); their route has this name."""
WORDS = {
    "navbar.html": {
        '<ul class="app-nav navbar-nav">': FLEET_TAB,
    },
    "task.html": {
        "{{ getattr(task, 'result', '') }}": "{{ task.result or 'none yet' }}",
        ">Task details</p>": ">Job</p>",
        "<dt>UUID</dt>": "<dt>ID</dt>",
        "<dt>Arguments</dt>": "<dt>Job</dt>",
        "<dt>Keyword arguments</dt>": "<dt>Batch, queue and labels</dt>",
        ">Terminate</button>": ">Cancel</button>",
        ">Revoke</button>": ">Cancel</button>",
        "['name', 'uuid', 'state', 'args', 'kwargs', 'result'] and": f"{HIDDEN_FIELDS} and",
    },
    "tasks.html": {
        '<p class="page-eyebrow">Task history</p>': '{% include "hints.html" %}',
    },
    "workers.html": {
        # Flower counts an attempt that is to be tried again in neither.
        '<th class="text-center">Processed</th>': '<th class="text-center">Attempts</th>',
    },
}
"""Words of Flower's own templates, and ours for them."""


class PageLoader(template.Loader):
    """Finds templates in our folder first, then in Flower's, with our words in them.

    The name ``flower/NAME`` always means Flower's.
    """

    def _create_template(self, name: str) -> Any:
        own, stock_name = OWN_TEMPLATES / name, name.removeprefix("flower/")
        if own.is_file() and stock_name == name:
            text = own.read_text()
        else:
            text = (Path(self.root) / stock_name).read_text()
            for word, ours in WORDS.get(stock_name, {}).items():
                text = text.replace(word, ours)
        return template.Template(text, name=name, loader=self)
