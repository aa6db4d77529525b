"""Flower's settings: ``celery -A sandfleet_worker.app flower --conf=<this file>``; options on the command line win.

Flower executes this file; it is no module of the worker.
"""

from __future__ import annotations

import os
import secrets
import sys
from typing import Any

from flower import urls
from flower.api.tasks import TaskResult

# The one address that would show a program's output: outcomes are for those who submitted the job.
urls.handlers[:] = [
    handler for handler in urls.handlers if not (isinstance(handler, tuple) and handler[1] is TaskResult)
]

# About 5 KB of memory a task; Flower's own default of 100 000 would take half a gigabyte.
max_tasks = 20_000
tasks_columns = "name,uuid,state,args,result,received,started,runtime,worker"
address = os.environ.get("FLOWER_ADDRESS", "127.0.0.1")

# Nobody gets in without a password, whoever starts Flower and however.
basic_auth = [pair for pair in os.environ.get("FLOWER_BASIC_AUTH", "").split(",") if pair]
if not basic_auth:
    basic_auth = [f"sandfleet:{secrets.token_urlsafe(12)}"]
    print(f"Flower's user and password, made for this run: {basic_auth[0]}", file=sys.stderr)  # noqa: T201


def format_task(task: Any) -> Any:
    """Show a failed job's code where others show their result."""
    if task.exception and not task.result:
        task.result = task.exception
    return task
