"""The questions that the pages and lists ask about a history of `past_rows`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from sandfleet.history.questions import HistoryFilter

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandfleet.history.file_history import FileHistory

NOWHERE: Final = "is nowhere to be found"


def since(hours: float) -> float:
    return time.time() - hours * 3600


def wanted(**fields: Any) -> HistoryFilter:
    return HistoryFilter(**fields)


QUESTIONS: Final[dict[str, Callable[[FileHistory], object]]] = {
    "status": lambda history: history.status(),
    "first page": lambda history: history.find_runs(wanted()),
    "page of a batch": lambda history: history.find_runs(wanted(batch="batch-100")),
    "page of a code in a batch": lambda history: history.find_runs(wanted(batch="batch-100", codes={"WORKER_LOST"})),
    "count of a batch": lambda history: history.count_runs(wanted(batch="batch-100")),
    "page of a host": lambda history: history.find_runs(wanted(host="host-07")),
    "page of a rare code of a host": lambda history: history.find_runs(
        wanted(host="host-07", codes={"IMAGE_NOT_FOUND"})
    ),
    "count of a host": lambda history: history.count_runs(wanted(host="host-07")),
    "page of a queue that has none": lambda history: history.find_runs(wanted(queue="rl", exit_code=77)),
    "page of a code that is not there": lambda history: history.find_runs(wanted(codes={"PIDS_LIMIT"})),
    "page of a category": lambda history: history.find_runs(wanted(categories={"host"})),
    "page of a rare label": lambda history: history.find_runs(wanted(labels={"case": "c500"})),
    "page of a common label": lambda history: history.find_runs(wanted(labels={"suite": "s3"})),
    "page of a common label that has none": lambda history: history.find_runs(
        wanted(labels={"suite": "s3"}, exit_code=77)
    ),
    "page of an image with attempts": lambda history: history.find_runs(wanted(image="judge:2026.1", min_attempts=2)),
    "page of long runs": lambda history: history.find_runs(wanted(min_seconds=29.99)),
    "page of text of a day": lambda history: history.find_runs(wanted(text=NOWHERE, since=since(24))),
    "count of all": lambda history: history.count_runs(wanted()),
    "runs of a job": lambda history: history.runs_of("no-such-job"),
    "failures of an hour": lambda history: history.find_failures(wanted(since=since(1))),
    "failures of a day": lambda history: history.find_failures(wanted(since=since(24))),
    "failures of all time": lambda history: history.find_failures(wanted()),
    "failures by code": lambda history: history.find_failures(wanted(since=since(24)), by="code"),
    "failures by host": lambda history: history.find_failures(wanted(since=since(24)), by="host"),
    "failures of a batch": lambda history: history.find_failures(wanted(batch="batch-100")),
    "rollup of an hour": lambda history: history.roll_up("category", since=since(1), until=time.time()),
    "rollup of a day by host": lambda history: history.roll_up(
        "host", since=since(24), until=time.time(), step_seconds=600
    ),
    "times of a batch": lambda history: history.find_times(wanted(batch="batch-100", is_newest=True)),
    "times of all": lambda history: history.find_times(wanted()),
    "times of a code that is not there": lambda history: history.find_times(wanted(codes={"PIDS_LIMIT"})),
    "use by batch": lambda history: history.find_usage("batch", wanted(since=since(24))),
    "use by label of a batch": lambda history: history.find_usage("label", wanted(batch="batch-100"), label="suite"),
}
