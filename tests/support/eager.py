"""A worker that boots sandboxes ahead however busy the machine is; in every other way it is the worker's own program."""

from __future__ import annotations

from sandfleet_worker import cli
from sandfleet_worker.sandbox.warm.demand import Spare


def has_cores(_: Spare) -> bool:
    return True


if __name__ == "__main__":
    setattr(Spare, "has_cores", has_cores)  # noqa: B010  types forbid the plain form
    cli.main()
