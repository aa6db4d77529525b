"""Whether a host enforces the limits that a job needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sandfleet_config.errors import HostResources

if TYPE_CHECKING:
    from sandfleet_worker.sandbox.policy import Admitted


def require_limits(limits: Admitted, enforced: frozenset[str]) -> None:
    """Refuse limits that are not in `enforced`.

    The caller adds those that the operator allowed to go unenforced.

    Raises:
        HostResources: names each of them, and what to do.
    """
    needed = {"memory", "pids", "disk"} | ({"cpu"} if limits.cpu_quota else set())
    if missing := sorted(needed - enforced):
        names = ",".join(missing)
        msg = (
            f"this host cannot enforce the limits {names}: give the worker a writable cgroup, "
            f"or set SANDFLEET_ALLOW_UNENFORCED={names} to run without them"
        )
        raise HostResources.of(msg)
