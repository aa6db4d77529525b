"""A worker whose warm pool fails for good at its first look; see test_worker_life.py."""

from __future__ import annotations

import sys
from typing import NoReturn

from sandfleet_config.settings import WorkerSettings
from sandfleet_worker.commands.start import serve
from sandfleet_worker.sandbox.warm.demand import HostLoad


def fail(_: HostLoad) -> NoReturn:
    raise SystemExit("the thread ends")


if __name__ == "__main__":
    setattr(HostLoad, "has_idle_cores", fail)  # noqa: B010  as in conftest.py
    sys.exit(serve(WorkerSettings()))
