"""Flower's settings: ``celery -A sandfleet_worker.app flower --conf=<this file>``.

Options on the command line win. Flower executes this file; it is no module of the worker. The
environment says who may enter: ``FLOWER_BASIC_AUTH`` is ``user:password``, or several with commas
between them; ``FLOWER_TOKEN`` is a bearer token that may read ``/metrics`` and ``/api``, and change
nothing. The pages of sandfleet-web are mounted here where it is installed: the entry points of the
group ``sandfleet.flower``.
"""

from __future__ import annotations

import os
import secrets
import sys
from typing import Any

try:
    from flower import urls

    from sandfleet_worker.celery_worker.flower.app import install, say
    from sandfleet_worker.celery_worker.flower.plugins import install_plugins

    install(os.environ.get("FLOWER_TOKEN", ""))
except ImportError as error:
    sys.exit(f"error: this Flower is not like 2.2, which sandfleet knows ({error}); fix: pip install 'flower>=2.2,<3'")

for fault in install_plugins(urls.handlers, urls.settings):
    say(fault)

# About 6 KB of memory a task; Flower's own default of 100 000 would take more than half a gigabyte.
max_tasks = 20_000
tasks_columns = "state,result,uuid,args,batch,queue,attempt,runtime,received,worker"
purge_offline_workers = 300
address = os.environ.get("FLOWER_ADDRESS", "127.0.0.1")

# Flower always asks for a password, also where it is started by hand.
basic_auth = [pair for pair in os.environ.get("FLOWER_BASIC_AUTH", "").split(",") if pair]
if not basic_auth:
    basic_auth = [f"sandfleet:{secrets.token_urlsafe(12)}"]
    say(f"Flower's user and password, made for this run: {basic_auth[0]}")


def format_task(task: Any) -> Any:
    """Show what went wrong where others show their result.

    A fault in sandfleet itself has no result of ours.
    """
    if task.exception and not task.result:
        task.result = task.exception
    return task
