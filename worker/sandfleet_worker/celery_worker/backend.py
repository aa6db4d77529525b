"""The worker's result backend.

It stores nothing: the task has settled the claim with its outcome.
"""

from __future__ import annotations

from typing import Any

from celery.backends.redis import RedisBackend, SentinelBackend


class NoStore:
    """A result backend without `store_result`; everything else stays Celery's.

    `finish.lua` writes Celery's result record together with the end of the claim, or not at all.
    Where Celery's own code fails around a task, the claim is settled when the job leaves its thread
    (`SandboxPool.on_done`).
    """

    def store_result(self, task_id: str, result: Any, state: str, *_: Any, **__: Any) -> Any:  # noqa: ARG002  Celery's
        """Return `result`, which is all that Celery wants."""
        return result


class ClaimsBackend(NoStore, RedisBackend):
    """Celery's backend of a Redis at an address."""


class SentinelClaimsBackend(NoStore, SentinelBackend):
    """Celery's backend of a Redis that sentinels know."""
